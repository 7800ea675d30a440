"""Activities on points in time."""

from __future__ import annotations

from temporalio import activity

from whimbrel.contracts.activity_io import (
    ClosePointInput,
    Done,
    ForgetPointsInput,
    OpenPointInput,
    PointResult,
    RestingPointResult,
)
from whimbrel.errors import Conflict, NotFound, Unsupported
from whimbrel.ports.cloud import CloudRegistry


class PointActivities:
    """Opening, closing and forgetting points in time."""

    def __init__(self, clouds: CloudRegistry) -> None:
        self._clouds = clouds

    @activity.defn(name="point.open", no_thread_cancel_exception=True)
    def open(self, wanted: OpenPointInput) -> PointResult:
        """Freeze a VM's disks at one instant, or find the point that an earlier attempt opened."""
        point = self._clouds.get(wanted.cloud).points.open(
            wanted.ref,
            wanted.disks,
            key=wanted.key,
            since=wanted.since,
            migration=wanted.migration,
            track=wanted.track,
            resting=wanted.resting,
        )
        return PointResult(point=point)

    @activity.defn(name="point.open_at_rest", no_thread_cancel_exception=True)
    def open_at_rest(self, wanted: OpenPointInput) -> RestingPointResult:
        """The point that is to be read once the VM is off, opened while it is still on, where the cloud can."""
        if not self._clouds.get(wanted.cloud).capabilities().rests:
            return RestingPointResult()
        try:
            point = self.open(wanted.model_copy(update={"resting": True})).point
        except Unsupported:
            return RestingPointResult()
        if point.kind != "cold":
            raise Conflict(f"point {point.key} shows a VM that is on: what it writes from now on would be missing")
        return RestingPointResult(point=point)

    @activity.defn(name="point.close", no_thread_cancel_exception=True)
    def close(self, wanted: ClosePointInput) -> Done:
        """End reading a point; its token stays."""
        self._clouds.get(wanted.cloud).points.close(wanted.ref, wanted.key, migration=wanted.migration)
        return Done()

    @activity.defn(name="point.forget", no_thread_cancel_exception=True)
    def forget(self, wanted: ForgetPointsInput) -> Done:
        """Remove this migration's tokens but those to keep; with none to keep, points still open are closed first."""
        points = self._clouds.get(wanted.cloud).points
        try:
            if not wanted.keep:
                for key in points.owned(wanted.ref, wanted.migration):
                    points.close(wanted.ref, key, migration=wanted.migration)
            points.forget(wanted.ref, migration=wanted.migration, keep=wanted.keep)
        except NotFound:
            return Done(note="the VM is not there")
        return Done()
