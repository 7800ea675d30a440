"""Rules about credentials and reach: good for long enough, APIs new enough, the storage open to the mover."""

from __future__ import annotations

from datetime import timedelta

from whimbrel.model.facts import AccessFacts
from whimbrel.model.figures import duration_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.known import baseline_s, listed, now, outage, the_vm
from whimbrel.precheck.rule import ALWAYS, Answer, FactMissing, found, ok, rule

MARGIN_S = 900.0
"""For checks, the confirm gate and a rollback after everything else."""
MOST_S = 10 * 365 * 86400.0


@rule("connect.credentials", "both clouds let the credentials in", Severity.BLOCK, catalogue=(80,), stages=ALWAYS)
def let_in(facts: PrecheckFacts) -> Answer:
    """Name and password (or application credential) are accepted, and the region and services that are named exist."""
    refused = [f"{cloud}: {access.why_refused}" for cloud, access in _both(facts) if access.why_refused]
    if refused:
        return found(
            f"not let in: {listed(refused)}",
            "check the cloud's entry: user, password or application credential, project, region (docs/openstack.md)",
        )
    if not facts.source.reachable or not facts.target.reachable:
        raise FactMissing("a cloud does not answer")
    told = [f"{cloud}: {', '.join(access.roles)}" for cloud, access in _both(facts) if access.roles]
    return ok(listed(told) or "accepted")


@rule("connect.api-versions", "both APIs are new enough", Severity.BLOCK, catalogue=(70, 73))
def api_versions(facts: PrecheckFacts) -> Answer:
    """Every service speaks the oldest version of its API that is needed; newer ones are used where both sides know."""
    old = [f"{cloud}: {text}" for cloud, access in _both(facts) for text in access.too_old]
    if old:
        return found(f"too old: {listed(old)}", "upgrade the service, or move its VMs as disks of another cloud kind")
    return ok("new enough")


@rule("connect.credential-life", "the credentials outlive the migration", Severity.BLOCK, catalogue=(80,))
def credential_life(facts: PrecheckFacts) -> Answer:
    """Credentials that cannot renew themselves (a bare token, one with an end) last past the window, or the forecast.

    Counted to the end of the plan's window and a quarter of an hour; without a window to the end of the copy and the
    outage to expect.
    """
    ends = {cloud: access.ends_at for cloud, access in _both(facts) if access.ends_at is not None}
    if not ends:
        return ok("they renew themselves, or have no end")
    moment, closes = now(facts), facts.plan.window.closes_at
    if closes is not None:
        needed, until = max(moment, closes), "the window's end"
    elif any(end < moment + timedelta(seconds=MARGIN_S) for end in ends.values()):
        needed, until = moment, "any migration ends"  # whatever the forecast
    else:
        spent = min(baseline_s(facts) + outage(facts).outage_s, MOST_S)
        needed, until = moment + timedelta(seconds=spent), "the forecast end"
    needed += timedelta(seconds=MARGIN_S)
    early = [
        f"{cloud}: {duration_text(max((end - moment).total_seconds(), 0.0))} left"
        for cloud, end in ends.items()
        if end < needed
    ]
    if early:
        wanted = duration_text((needed - moment).total_seconds())
        return found(
            f"the credentials end before {until} (at least {wanted} are needed): {listed(early)}",
            "use a password or an application credential without an end, or one that lasts longer",
        )
    return ok(f"they last past {until}")


@rule("connect.storage", "the mover opens the storage", Severity.BLOCK, catalogue=(61, 77), stages=ALWAYS)
def storage(facts: PrecheckFacts) -> Answer:
    """The storage behind the volumes of both clouds answers the mover, and its key may read and write each pool."""
    closed = [f"{cloud}: {text}" for cloud, access in _both(facts) for text in access.storage_unreached]
    if closed:
        return found(
            f"not open to the mover: {listed(closed)}",
            "check the network, ceph.conf and keyring on the mover, and the key's rights on the pool",
        )
    if not facts.source.reachable or not facts.target.reachable:
        raise FactMissing("a cloud does not answer")
    return ok("open, as far as it is reached directly")


@rule("connect.mover", "servers that reach the storage can be made", Severity.BLOCK, catalogue=(61, 77), stages=ALWAYS)
def mover_servers(facts: PrecheckFacts) -> Answer:
    """Where volumes go through a server of ours in the cloud: its image, flavor, network and keys, and enough disks."""
    lacking = [f"{cloud}: {text}" for cloud, access in _both(facts) for text in access.mover_lacks]
    if lacking:
        return found(
            f"mover servers cannot be made: {listed(lacking)}",
            "correct the cloud's `mover` section in whimbrel.yaml, or make what it names (docs/openstack.md)",
        )
    plan, vm = facts.plan, the_vm(facts)
    pools = {
        plan.source: (facts.source.limits, [disk.pool for disk in vm.disks]),
        plan.target: (facts.target.limits, [plan.pool_for(disk.pool) for disk in vm.disks]),
    }
    many = [
        f"{cloud}: {count} disks, {limits.mover.max_disks} allowed"
        for cloud, (limits, used) in pools.items()
        if limits.mover is not None and (count := sum(map(limits.served, used))) > limits.mover.max_disks
    ]
    if many and plan.mode != "dual-attach":
        return found(
            f"too many disks for one mover server: {listed(many)}",
            "raise mover.max_disks in whimbrel.yaml if the cloud attaches that many, or move fewer disks",
        )
    used = [cloud for cloud, (limits, names) in pools.items() if any(map(limits.served, names))]
    return ok(f"as {listed(used)} needs them" if used else "none are needed")


def _both(facts: PrecheckFacts) -> tuple[tuple[str, AccessFacts], ...]:
    return ((facts.plan.source, facts.source.access), (facts.plan.target, facts.target.access))


RULES = (let_in, api_versions, credential_life, storage, mover_servers)
