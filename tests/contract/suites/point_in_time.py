"""PointInTimePort, line by line: what holds for every disk, and what holds for disks with change tracking."""

from __future__ import annotations

import random
import uuid

import pytest

from tests.contract.blockio import (
    apply_changes,
    changed_of,
    covers,
    extents_of,
    opened,
    read_device,
    read_point,
    write_point,
)
from tests.contract.harness import Harness, Lack, needs
from tests.contract.suites.points import PointSuite
from tests.contract.suites.suite import GRAIN, MIB, SIZE
from whimbrel.errors import BaseLost, Conflict, NotFound, Unsupported, WhimbrelError
from whimbrel.model.extent import total_bytes
from whimbrel.model.naming import point_key, writer_key
from whimbrel.model.vm import DiskFormat

OTHER = "0123456789"


class PointInTimeContract(PointSuite):
    """Points on disks of any format."""

    @pytest.mark.parametrize("running", [True, False], ids=["live", "cold"])
    def test_a_point_reads_what_was_there(self, harness: Harness, migration: str, running: bool) -> None:
        ref = self.vm(harness, running=True if running else None)
        content = random.Random(3).randbytes(200_000)
        harness.guest_write(ref, "vda", 77_777, content)
        if not running:
            harness.cloud.compute.force_off(ref)
        point = self.open(harness, ref, migration, 1)
        assert (point.kind, point.vm_ref, point.key) == (
            "live" if running else "cold",
            ref,
            point_key(migration, 1),
        )
        assert point.taken_at.tzinfo is not None
        assert read_point(point.disk("vda")) == bytes(77_777) + content + bytes(SIZE - 277_777)
        assert not point.disk("vda").tracked

    def test_a_live_point_stays_frozen_while_the_guest_writes(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness, running=True)
        chance = random.Random(4)
        harness.guest_write(ref, "vda", 0, chance.randbytes(MIB))
        frozen = harness.read_disk(ref, "vda")
        point = self.open(harness, ref, migration, 1)
        with opened(point.disk("vda").endpoint) as device:
            first_half = read_device(device, 0, SIZE // 2)
            for _ in range(12):
                length = chance.randint(1, 100_000)
                harness.guest_write(ref, "vda", chance.randrange(SIZE - length), chance.randbytes(length))
            second_half = read_device(device, SIZE // 2)
            assert first_half + second_half == frozen
            assert read_device(device) == frozen
        assert harness.read_disk(ref, "vda") != frozen

    def test_a_point_of_a_stopped_vm_outlives_its_start(self, harness: Harness, migration: str) -> None:
        """Where the cloud says so: the target's first state is compared while the target runs."""
        if not harness.cloud.capabilities().points_outlive_start:
            pytest.skip("capabilities().points_outlive_start is False")
        ref = self.vm(harness, running=True)
        harness.guest_write(ref, "vda", GRAIN, b"first")
        harness.cloud.compute.force_off(ref)
        base = harness.read_disk(ref, "vda")
        point = self.open(harness, ref, migration, 1)
        harness.cloud.compute.start(ref)
        harness.guest_write(ref, "vda", GRAIN, b"later")
        assert self.open(harness, ref, migration, 1).disk("vda") == point.disk("vda")
        assert read_point(point.disk("vda")) == base
        self.close(harness, ref, migration, 1)
        if point.token is not None:
            since = self.open(harness, ref, migration, 2, since=point.token)
            assert apply_changes(base, since.disk("vda")) == harness.read_disk(ref, "vda")

    def test_all_disks_are_frozen_together(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.LIVE_POINTS)
        ref = harness.make_vm([(SIZE, self.disk_format)] * 2, running=True)
        for disk in ("vda", "vdb"):
            harness.guest_write(ref, disk, 0, disk.encode())
        point = self.open(harness, ref, migration, 1, disks=("vda", "vdb"))
        for disk in ("vda", "vdb"):
            harness.guest_write(ref, disk, 0, b"new")
        assert [disk.key for disk in point.disks] == ["vda", "vdb"]
        assert {disk.key: read_point(disk)[:3] for disk in point.disks} == {"vda": b"vda", "vdb": b"vdb"}

    def test_allocation_covers_the_disk_and_marks_only_true_zeros(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        harness.guest_write(ref, "vda", 5 * GRAIN + 7, b"data")
        point = self.open(harness, ref, migration, 1)
        extents = extents_of(point.disk("vda"))
        assert [extents[0].start, *(extent.end for extent in extents)] == [
            *(extent.start for extent in extents),
            SIZE,
        ]
        content = read_point(point.disk("vda"))
        assert all(not any(content[extent.start : extent.end]) for extent in extents if extent.zero)

    @pytest.mark.parametrize("running", [True, False], ids=["live", "cold"])
    def test_open_again_is_the_same_point(self, harness: Harness, migration: str, running: bool) -> None:
        ref = self.vm(harness, running=running)
        first = self.open(harness, ref, migration, 1)
        if running:
            harness.guest_write(ref, "vda", 0, b"after the first open")
        assert self.open(harness, ref, migration, 1).disks == first.disks
        adopted = harness.fresh_cloud().points.open(ref, ["vda"], key=first.key, migration=migration)
        assert (adopted.key, adopted.kind, adopted.token) == (first.key, first.kind, first.token)
        assert read_point(adopted.disk("vda")) == bytes(SIZE)

    @pytest.mark.parametrize("running", [True, False], ids=["live", "cold"])
    def test_a_point_outlives_the_worker_that_opened_it(self, harness: Harness, migration: str, running: bool) -> None:
        ref = self.vm(harness, running=running)
        first = self.open(harness, ref, migration, 1)
        harness.cloud.close()
        fresh = harness.fresh_cloud()
        adopted = fresh.points.open(ref, ["vda"], key=first.key, migration=migration)
        assert read_point(adopted.disk("vda")) == bytes(SIZE)
        fresh.points.close(ref, first.key, migration=migration)
        fresh.points.forget(ref, migration=migration)
        assert list(fresh.points.owned(ref, migration)) == []

    @pytest.mark.parametrize("running", [True, False], ids=["live", "cold"])
    def test_close_twice_and_of_nothing(self, harness: Harness, migration: str, running: bool) -> None:
        ref = self.vm(harness, running=running)
        self.close(harness, ref, migration, 9)
        point = self.open(harness, ref, migration, 1)
        for cloud in (harness.cloud, harness.cloud, harness.fresh_cloud()):
            cloud.points.close(ref, point.key, migration=migration)
        with pytest.raises(WhimbrelError), opened(point.disk("vda").endpoint) as device:
            read_device(device, 0, GRAIN)

    @pytest.mark.parametrize("running", [True, False], ids=["live", "cold"])
    def test_points_follow_each_other(self, harness: Harness, migration: str, running: bool) -> None:
        ref = self.vm(harness, running=running)
        for serial in (1, 2, 3):
            self.open(harness, ref, migration, serial)
            self.close(harness, ref, migration, serial)
        assert harness.cloud.compute.power(ref) == ("running" if running else "off")

    def test_an_open_point_is_owned_until_closed_and_forgotten(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        assert list(harness.cloud.points.owned(ref, migration)) == []
        point = self.open(harness, ref, migration, 1, track=False)
        assert point.token is None
        assert list(harness.fresh_cloud().points.owned(ref, migration)) == [point.key]
        assert list(harness.cloud.points.owned(ref, OTHER)) == []
        self.close(harness, ref, migration, 1)
        assert list(harness.cloud.points.owned(ref, migration)) == []

    def test_an_open_point_of_another_migration_is_a_conflict(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        mine = self.open(harness, ref, migration, 1)
        with pytest.raises(Conflict):
            self.open(harness, ref, OTHER, 1)
        self.close(harness, ref, OTHER, 1)
        assert read_point(mine.disk("vda")) == bytes(SIZE)

    def test_another_tools_job_is_a_conflict_and_left_alone(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.FOREIGN_JOBS)
        ref = self.vm(harness)
        with harness.foreign_job(ref):
            with pytest.raises(Conflict):
                self.open(harness, ref, migration, 1)
            assert harness.cloud.source_facts(ref).running_job
        assert read_point(self.open(harness, ref, migration, 1).disk("vda")) == bytes(SIZE)

    def test_what_is_not_there_is_not_found(self, harness: Harness, migration: str) -> None:
        with pytest.raises(NotFound):
            self.open(harness, str(uuid.uuid4()), migration, 1)
        ref = self.vm(harness)
        with pytest.raises(NotFound):
            self.open(harness, ref, migration, 1, disks=("vda", "vdz"))
        assert list(harness.cloud.points.owned(ref, migration)) == []

    def test_an_unknown_base_is_lost(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        with pytest.raises(BaseLost):
            self.open(harness, ref, migration, 2, since=point_key(migration, 1))
        assert list(harness.cloud.points.owned(ref, migration)) == []
        assert read_point(self.open(harness, ref, migration, 3).disk("vda")) == bytes(SIZE)

    def test_a_point_without_base_cannot_tell_changes(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        point = self.open(harness, ref, migration, 1)
        with pytest.raises(Unsupported):
            changed_of(point.disk("vda"))

    def test_a_disk_being_written_has_no_point(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.WRITE_BACK)
        ref = self.vm(harness, running=False)
        vm = harness.cloud.compute.inspect(ref)
        harness.cloud.volumes.open_disk_writer(writer_key(migration), vm, ["vda"], migration=migration)
        with pytest.raises(Conflict):
            self.open(harness, ref, migration, 1)

    def test_the_definition_is_untouched(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        before = harness.cloud.compute.inspect(ref)
        self.open(harness, ref, migration, 1)
        assert harness.cloud.compute.inspect(ref).definition_digest == before.definition_digest
        self.close(harness, ref, migration, 1)
        harness.cloud.points.forget(ref, migration=migration)
        after = harness.cloud.compute.inspect(ref)
        assert after.definition_digest == before.definition_digest
        assert [disk.location for disk in after.disks] == [disk.location for disk in before.disks]


class UntrackedPointContract(PointSuite):
    """Points on disks that cannot carry tracking."""

    disk_format: DiskFormat = "raw"

    def test_no_token_is_left(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        assert not harness.cloud.compute.inspect(ref).disk("vda").trackable
        point = self.open(harness, ref, migration, 1, track=True)
        assert (point.token, point.disk("vda").tracked) == (None, False)
        self.close(harness, ref, migration, 1)
        assert list(harness.cloud.points.owned(ref, migration)) == []
        harness.cloud.points.forget(ref, migration=migration)

    def test_tracked_and_untracked_disks_in_one_point(self, harness: Harness, migration: str) -> None:
        ref = harness.make_vm([(SIZE, "qcow2"), (SIZE, "raw")], running=True)
        token = self.open(harness, ref, migration, 1, disks=("vda", "vdb")).token
        self.close(harness, ref, migration, 1)
        assert token is not None
        for disk in ("vda", "vdb"):
            harness.guest_write(ref, disk, GRAIN, b"new")
        point = self.open(harness, ref, migration, 2, since=token, disks=("vda", "vdb"))
        assert (point.disk("vda").tracked, point.disk("vdb").tracked) == (True, False)
        assert covers(changed_of(point.disk("vda")), GRAIN, 3)
        assert read_point(point.disk("vdb"))[GRAIN : GRAIN + 3] == b"new"


class TrackedPointContract(PointSuite):
    """Tokens, and what changed since them. The driver's cloud has ``capabilities().change_tracking``."""

    def test_nothing_written_is_nothing_changed(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        harness.guest_write(ref, "vda", 0, b"x" * MIB)
        assert harness.cloud.compute.inspect(ref).disk("vda").trackable
        token = self.passed(harness, ref, migration, 1)
        point = self.open(harness, ref, migration, 2, since=token)
        assert (point.since, point.disk("vda").tracked) == (token, True)
        assert changed_of(point.disk("vda")) == []

    @pytest.mark.parametrize("seed", range(3))
    def test_a_delta_makes_the_base_equal(self, harness: Harness, migration: str, seed: int) -> None:
        chance = random.Random(seed)
        ref = self.vm(harness)
        harness.guest_write(ref, "vda", chance.randrange(MIB), chance.randbytes(MIB // 2))
        point = self.open(harness, ref, migration, 1)
        target = read_point(point.disk("vda"))
        for serial in (2, 3, 4):
            # While the point before is still open: these writes belong to the next delta.
            writes = []
            for _ in range(4):
                length = chance.choice([1, 512, 4096, GRAIN, 3 * GRAIN])
                offset = chance.randrange(SIZE - length)
                data = bytes(length) if chance.random() < 0.3 else chance.randbytes(length)
                harness.guest_write(ref, "vda", offset, data)
                writes.append((offset, length))
            self.close(harness, ref, migration, serial - 1)
            point = self.open(harness, ref, migration, serial, since=point.token)
            changed = changed_of(point.disk("vda"))
            assert all(covers(changed, offset, length) for offset, length in writes)
            target = apply_changes(target, point.disk("vda"))
            assert target == read_point(point.disk("vda")) == harness.read_disk(ref, "vda")

    def test_a_resting_point_ends_the_row(self, harness: Harness, migration: str) -> None:
        """The last delta of a VM that stays off: told since the token, the same again, and no hindrance afterwards."""
        ref = self.vm(harness)
        harness.guest_write(ref, "vda", 0, b"first")
        token = self.passed(harness, ref, migration, 1)
        base = harness.read_disk(ref, "vda")
        harness.guest_write(ref, "vda", 2 * GRAIN + 9, b"second")
        harness.cloud.compute.force_off(ref)
        point = self.open(harness, ref, migration, 2, since=token, resting=True)
        assert (point.kind, point.disk("vda").tracked) == ("cold", True)
        assert apply_changes(base, point.disk("vda")) == read_point(point.disk("vda")) == harness.read_disk(ref, "vda")
        fresh = harness.fresh_cloud().points
        key = point.key
        again = fresh.open(ref, ["vda"], key=key, since=token, migration=migration, resting=True)
        assert (again.disks, again.taken_at) == (point.disks, point.taken_at)
        assert key in fresh.owned(ref, migration)
        self.close(harness, ref, migration, 2)
        with pytest.raises(WhimbrelError), opened(point.disk("vda").endpoint) as device:
            read_device(device, 0, GRAIN)
        harness.cloud.compute.start(ref)
        harness.guest_write(ref, "vda", 5 * GRAIN, b"third")
        after = self.open(harness, ref, migration, 3, since=token)
        assert apply_changes(base, after.disk("vda")) == harness.read_disk(ref, "vda")

    def test_an_announced_vm_is_frozen_while_its_migration_fills_it(self, harness: Harness, migration: str) -> None:
        """The state before the last delta; nobody else's session is passed over."""
        if not harness.cloud.capabilities().announces:
            pytest.skip("capabilities().announces is False")
        wanted = self.target(harness, migration, self.moved_vm(harness))
        volumes = {disk.spec.key: disk.volume for disk in wanted.disks}
        session = harness.cloud.volumes.open_writer(writer_key(migration), volumes, migration=migration)
        write_point(session.disks[0], 0, b"before")
        ref = harness.cloud.compute.ensure_vm(wanted).ref
        with pytest.raises(Conflict):
            self.open(harness, ref, OTHER, 1)
        point = self.open(harness, ref, migration, 1)
        write_point(session.disks[0], 0, b"after!")
        assert read_point(point.disk("vda"))[:6] == b"before"
        harness.cloud.volumes.close_writer(session.key)
        self.close(harness, ref, migration, 1)
        since = self.open(harness, ref, migration, 2, since=point.token)
        assert covers(changed_of(since.disk("vda")), 0, 6)
        assert read_point(since.disk("vda"))[:6] == b"after!"

    def test_tracking_is_not_the_whole_disk(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        token = self.passed(harness, ref, migration, 1)
        harness.guest_write(ref, "vda", 0, b"one")
        changed = changed_of(self.open(harness, ref, migration, 2, since=token).disk("vda"))
        assert 3 <= total_bytes(changed) <= MIB

    def test_an_older_token_gives_the_union(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        base = harness.read_disk(ref, "vda")
        first = self.passed(harness, ref, migration, 1)
        writes = [(0, b"a" * 100), (8 * GRAIN, b"b" * 100), (16 * GRAIN + 5, b"c" * GRAIN)]
        for serial, (offset, data) in enumerate(writes, start=2):
            harness.guest_write(ref, "vda", offset, data)
            self.passed(harness, ref, migration, serial)
        point = self.open(harness, ref, migration, 9, since=first)
        changed = changed_of(point.disk("vda"))
        assert all(covers(changed, offset, len(data)) for offset, data in writes)
        assert apply_changes(base, point.disk("vda")) == read_point(point.disk("vda"))

    def test_an_open_tracked_point_still_answers_when_adopted(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        token = self.passed(harness, ref, migration, 1)
        harness.guest_write(ref, "vda", 3 * GRAIN, b"delta")
        point = self.open(harness, ref, migration, 2, since=token)
        harness.cloud.close()
        adopted = harness.fresh_cloud().points.open(ref, ["vda"], key=point.key, since=token, migration=migration)
        assert (adopted.since, adopted.token, adopted.disk("vda").tracked) == (token, point.token, True)
        assert covers(changed_of(adopted.disk("vda")), 3 * GRAIN, 5)

    def test_the_final_cold_delta(self, harness: Harness, migration: str) -> None:
        """The cutover: rounds while it runs, the last delta when it is off."""
        ref = self.vm(harness)
        harness.guest_write(ref, "vda", 0, b"baseline" * GRAIN)
        live = self.open(harness, ref, migration, 1)
        target = read_point(live.disk("vda"))
        self.close(harness, ref, migration, 1)
        harness.guest_write(ref, "vda", 2 * GRAIN + 99, b"last words")
        harness.cloud.compute.force_off(ref)
        cold = self.open(harness, ref, migration, 2, since=live.token, track=False)
        assert (cold.kind, cold.token, cold.disk("vda").tracked) == ("cold", None, True)
        assert apply_changes(target, cold.disk("vda")) == harness.read_disk(ref, "vda")

    def test_tracking_survives_a_power_cycle(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        base = harness.read_disk(ref, "vda")
        token = self.passed(harness, ref, migration, 1)
        harness.guest_write(ref, "vda", 0, b"before")
        harness.cloud.compute.force_off(ref)
        harness.cloud.compute.start(ref)
        harness.guest_write(ref, "vda", 20 * GRAIN, b"after")
        point = self.open(harness, ref, migration, 2, since=token)
        assert apply_changes(base, point.disk("vda")) == harness.read_disk(ref, "vda")

    def test_a_paused_vm_is_tracked_from_before_its_first_write(self, harness: Harness, migration: str) -> None:
        """The target at cutover: what it writes after its first instruction can be brought back."""
        if not harness.cloud.capabilities().start_paused:
            pytest.skip("capabilities().start_paused is False")
        ref = self.vm(harness, running=False)
        base = harness.read_disk(ref, "vda")
        harness.cloud.compute.start(ref, paused=True)
        token = self.passed(harness, ref, migration, 1)
        harness.cloud.compute.resume(ref)
        harness.guest_write(ref, "vda", 4 * GRAIN, b"written at the target")
        harness.cloud.compute.force_off(ref)
        point = self.open(harness, ref, migration, 2, since=token, track=False)
        assert apply_changes(base, point.disk("vda")) == harness.read_disk(ref, "vda")

    def test_a_token_from_a_stopped_vm(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.COLD_TOKENS)
        ref = self.vm(harness, running=False)
        base = harness.read_disk(ref, "vda")
        token = self.passed(harness, ref, migration, 1)
        harness.cloud.compute.start(ref)
        harness.guest_write(ref, "vda", GRAIN, b"later")
        point = self.open(harness, ref, migration, 2, since=token)
        assert apply_changes(base, point.disk("vda")) == harness.read_disk(ref, "vda")

    def test_damaged_tracking_is_base_lost_and_can_be_forgotten(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.DAMAGE)
        ref = self.vm(harness)
        token = self.passed(harness, ref, migration, 1)
        harness.damage_tracking(ref)
        with pytest.raises(BaseLost):
            self.open(harness, ref, migration, 2, since=token)
        harness.cloud.points.forget(ref, migration=migration)
        assert list(harness.cloud.points.owned(ref, migration)) == []
        harness.cloud.compute.start(ref)
        self.passed(harness, ref, migration, 3)

    def test_an_untracked_point_leaves_no_token(self, harness: Harness, migration: str) -> None:
        ref = self.vm(harness)
        point = self.open(harness, ref, migration, 1, track=False)
        self.close(harness, ref, migration, 1)
        assert point.token is None
        assert list(harness.cloud.points.owned(ref, migration)) == []

    # --- forgetting

    @pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
    def test_forget_keeps_what_it_is_told(self, harness: Harness, migration: str, running: bool) -> None:
        ref = self.vm(harness)
        base = harness.read_disk(ref, "vda")
        tokens = [self.passed(harness, ref, migration, serial) for serial in (1, 2, 3)]
        assert sorted(harness.cloud.points.owned(ref, migration)) == sorted(tokens)
        harness.guest_write(ref, "vda", 0, b"after all tokens")
        if not running:
            harness.cloud.compute.force_off(ref)
        for cloud in (harness.cloud, harness.fresh_cloud()):
            cloud.points.forget(ref, migration=migration, keep=[tokens[1]])
            assert list(cloud.points.owned(ref, migration)) == [tokens[1]]
        with pytest.raises(BaseLost):
            self.open(harness, ref, migration, 8, since=tokens[0])
        point = self.open(harness, ref, migration, 9, since=tokens[1], track=False)
        assert apply_changes(base, point.disk("vda")) == harness.read_disk(ref, "vda")

    @pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
    def test_forget_leaves_nothing_of_ours_and_all_of_others(
        self, harness: Harness, migration: str, running: bool
    ) -> None:
        ref = self.vm(harness)
        theirs = self.passed(harness, ref, OTHER, 1)
        for serial in (1, 2):
            self.passed(harness, ref, migration, serial)
        before = harness.cloud.compute.inspect(ref).definition_digest
        if not running:
            harness.cloud.compute.force_off(ref)
        for _ in range(2):
            harness.cloud.points.forget(ref, migration=migration)
        assert list(harness.fresh_cloud().points.owned(ref, migration)) == []
        assert list(harness.cloud.points.owned(ref, OTHER)) == [theirs]
        assert harness.cloud.compute.inspect(ref).definition_digest == before
        point = self.open(harness, ref, OTHER, 2, since=theirs, track=False)
        assert changed_of(point.disk("vda")) == []

    def test_forget_spares_tokens_of_other_tools(self, harness: Harness, migration: str) -> None:
        needs(harness, Lack.FOREIGN_TOKENS)
        ref = self.vm(harness)
        foreign = harness.add_foreign_token(ref)
        self.passed(harness, ref, migration, 1)
        assert foreign not in harness.cloud.points.owned(ref, migration)
        harness.cloud.points.forget(ref, migration=migration)
        assert foreign in harness.foreign_tokens(ref)
        assert foreign in harness.cloud.source_facts(ref).disks[0].foreign_tracking
