"""Rules about what the target says to this very VM: hosts with room, its properties, its cards' ports."""

from __future__ import annotations

from whimbrel.model.figures import bytes_text
from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.demand import plan_demand
from whimbrel.precheck.known import listed, mapped_networks, the_target, the_vm
from whimbrel.precheck.rule import ALWAYS, BEFORE, Answer, FactMissing, found, ok, rule


@rule("target.hosts", "a host has room for the VM", Severity.WARN, catalogue=(58,), stages=ALWAYS)
def hosts(facts: PrecheckFacts) -> Answer:
    """Hosts that could take the VM now, asked of the scheduler's own books; only where the credentials may ask.

    For a plan of several VMs also whether those hosts have room for all of them together.
    """
    the_target(facts)
    vm, fit = the_vm(facts), facts.fit
    if not fit.asked:
        return ok("nothing places VMs on hosts there: target.memory and target.vcpus judge the one that is known")
    if fit.hosts is None:
        raise FactMissing("which hosts have room (an administrator may ask)")
    shape = f"{vm.vcpus} vCPUs and {bytes_text(vm.memory_bytes)}"
    zone = facts.plan.placement.zone
    if not sum(count for name, count in fit.hosts.items() if zone in {None, name}):
        return found(
            f"no host at {facts.plan.target}{f' in zone {zone}' if zone else ''} has room for {shape}",
            "free hosts there, or ask the cloud's operator: the VM could not be started at the cutover",
        )
    by_zone = listed([f"{count} in {zone or 'no zone'}" for zone, count in sorted(fit.hosts.items())])
    if facts.plan.companions and facts.companions is not None and fit.hosts_free is not None:
        need, count = plan_demand(facts)
        vcpus, memory = need["vCPUs", None], need["memory", None]
        if vcpus > fit.hosts_free[0] or memory > fit.hosts_free[1]:
            return found(
                f"{count} VMs together need {vcpus} vCPUs and {bytes_text(memory)}; hosts with room for this one have "
                f"{fit.hosts_free[0]} and {bytes_text(fit.hosts_free[1])} free",
                "start fewer VMs at once, or free hosts at the target",
            )
    return ok(f"hosts with room for {shape}: {by_zone}")


@rule("target.traits", "hosts with room have what the VM's properties ask for", Severity.WARN, catalogue=(60, 9))
def traits(facts: PrecheckFacts) -> Answer:
    """Buses, card models and secure boot that the VM keeps, against what those hosts say they can do."""
    the_target(facts)
    the_vm(facts)
    if facts.fit.unfit_traits:
        return found(
            f"no host with room at {facts.plan.target} has: {listed(facts.fit.unfit_traits)}",
            "change these properties at the source first (the guest needs the drivers), or ask the cloud's operator",
        )
    if facts.fit.asked and facts.fit.hosts is None:
        raise FactMissing("what the hosts can do (an administrator may ask)")
    return ok("hosts with room have all of them")


@rule("network.port", "every card gets its port", Severity.BLOCK, catalogue=(46, 79), stages=BEFORE)
def port(facts: PrecheckFacts) -> Answer:
    """A port with the card's MAC and address can be had at the target: tried for real with the data path, and removed.

    Untried it is judged by what can be seen: who has MAC and address, and whether the credentials may choose them.
    """
    the_target(facts)
    cards = {nic.key: nic for nic in the_vm(facts).nics}
    if facts.fit.ports_tried:
        refused = [f"{key}: {why}" for key, why in sorted(facts.fit.ports_refused.items())]
        if refused:
            return found(
                f"{facts.plan.target} refuses ports: {listed(refused)}",
                "free the MAC or address, map another network, or use credentials of the network's own project",
            )
        return ok(f"{len(cards)} ports were made and removed")
    taken = [f"{key}: {who}" for key, who in sorted(facts.fit.taken.items())]
    if taken:
        return found(
            f"in use at {facts.plan.target}: {listed(taken)}",
            "remove what has it (a port of an earlier try, too), or give the VM another one",
        )
    foreign = sorted({network.name for _, network in mapped_networks(facts) if network.fixed is False})
    if foreign:
        return found(
            f"these credentials may not choose MAC and address on {listed(foreign)}: it belongs to another project",
            "map a network of this project, let the network's owner grant it, or use an administrator's entry",
        )
    unseen = sorted({network.name for _, network in mapped_networks(facts) if network.fixed is None})
    if unseen and facts.target.limits.quotas:
        raise FactMissing(f"whether ports on {listed(unseen)} may have the cards' MAC and address")
    return ok(f"{len(cards)} cards")


@rule("network.address-pairs", "no addresses besides the cards' own", Severity.WARN, catalogue=(53, 48))
def address_pairs(facts: PrecheckFacts) -> Answer:
    """Addresses of clusters and virtual IPs that the source lets a card use; at the target they are filtered out."""
    the_vm(facts)
    if facts.source.address_pairs:
        return found(
            f"cards may use other addresses at the source: {listed(facts.source.address_pairs)}",
            "allow them at the target's ports after the cutover (allowed address pairs), before confirm",
        )
    return ok("every card uses its own addresses only")


@rule("network.floating", "no addresses from outside are led to the VM", Severity.WARN, catalogue=(50,))
def floating(facts: PrecheckFacts) -> Answer:
    """Floating addresses belong to the source cloud: who reaches the VM by one loses it with the cutover."""
    the_vm(facts)
    if facts.source.floating_addresses:
        return found(
            f"reached from outside by {listed(facts.source.floating_addresses)}",
            "give the VM another one at the target, and change DNS with the cutover",
        )
    return ok("no floating addresses")


@rule("network.new-filters", "no filters are put on new cards", Severity.WARN, catalogue=(50,))
def new_filters(facts: PrecheckFacts) -> Answer:
    """A target network that gives every new card a packet filter (security group) may cut off what was open before."""
    strict = [f"{network.name} ({listed(network.filters)})" for _, network in mapped_networks(facts) if network.filters]
    the_vm(facts)
    if strict:
        return found(
            f"new cards are filtered: {listed(sorted(set(strict)))}",
            "let the filter (security group default) pass what the VM serves, or switch port security off there",
        )
    return ok("nothing is filtered that was not before")


RULES = (hosts, traits, port, address_pairs, floating, new_filters)
