"""Rules about network cards: every one gets a network that is there, and nothing at the target has its address."""

from __future__ import annotations

import ipaddress

from whimbrel.model.finding import PrecheckFacts, Severity
from whimbrel.precheck.known import listed, mapped_networks, the_target, the_vm
from whimbrel.precheck.rule import ALWAYS, Answer, FactMissing, found, ok, rule


@rule("network.mapped", "every network is mapped", Severity.BLOCK, catalogue=(43,))
def mapped(facts: PrecheckFacts) -> Answer:
    """The plan names a target network for the network of every card (``*`` stands for all others)."""
    missing = sorted({nic.network for nic in the_vm(facts).nics if facts.plan.network_for(nic.network) is None})
    if missing:
        return found(f"no target network for {listed(missing)}", "add them to networks: in the plan")
    return ok(listed([f"{nic.network} -> {facts.plan.network_for(nic.network)}" for nic in the_vm(facts).nics]))


@rule("network.exists", "every target network exists", Severity.BLOCK, catalogue=(44,), stages=ALWAYS)
def exists(facts: PrecheckFacts) -> Answer:
    """The target cloud shows each network that the plan maps a card to."""
    the_target(facts)
    there = {network.name for network in facts.target.networks}
    wanted = {facts.plan.network_for(nic.network) for nic in the_vm(facts).nics} - {None}
    missing = sorted(str(name) for name in wanted - there)
    if missing:
        return found(
            f"{facts.plan.target} has no network {listed(missing)}; it has {listed(sorted(there)) or 'none'}",
            "create it, or correct networks: in the plan",
        )
    return ok(f"{len(wanted)} target networks exist")


@rule("network.active", "every target network is active", Severity.BLOCK, catalogue=(44,), stages=ALWAYS)
def active(facts: PrecheckFacts) -> Answer:
    """A VM cannot start on a network that is defined but down."""
    down = sorted({network.name for _, network in mapped_networks(facts) if not network.active})
    if down:
        return found(f"not active at {facts.plan.target}: {listed(down)}", "start the network (virsh net-start)")
    return ok("all target networks are active")


@rule("network.mac", "no card's MAC is in use at the target", Severity.BLOCK, catalogue=(45,), stages=ALWAYS)
def mac(facts: PrecheckFacts) -> Answer:
    """Cards keep their MAC; another VM at the target must not have it."""
    the_target(facts)
    taken = [
        f"{nic.mac} by {facts.target.macs[nic.mac.lower()]}"
        for nic in the_vm(facts).nics
        if nic.mac.lower() in facts.target.macs
    ]
    if taken:
        return found(f"in use at {facts.plan.target}: {listed(taken)}", "remove the other VM's card or the other VM")
    return ok(f"{len(the_vm(facts).nics)} MACs are free")


@rule("network.mtu", "the target's MTU is large enough", Severity.WARN, catalogue=(51,))
def mtu(facts: PrecheckFacts) -> Answer:
    """A guest that sends larger packets than the target network carries loses them, often without a message."""
    pairs = [
        (nic, network, facts.source.network_mtus[nic.network], network.mtu)
        for nic, network in mapped_networks(facts)
        if network.mtu is not None and nic.network in facts.source.network_mtus
    ]
    small = [
        f"{nic.key}: {before} at {nic.network}, {after} at {n.name}"
        for nic, n, before, after in pairs
        if after < before
    ]
    if small:
        return found(f"smaller MTU: {listed(small)}", "raise the target network's MTU, or lower the guest's")
    if the_vm(facts).nics and not pairs:
        raise FactMissing("the MTU of source or target networks")
    return ok(f"{len(pairs)} cards keep their MTU")


@rule("network.link", "every card is plugged in", Severity.WARN, catalogue=(49,))
def link(facts: PrecheckFacts) -> Answer:
    """A card whose link is down at the source comes up the same at the target."""
    down = [nic.key for nic in the_vm(facts).nics if not nic.link_up]
    if down:
        return found(f"link down: {listed(down)}", "plug the card in or remove it")
    return ok("all links are up")


@rule("network.addresses", "the guest's addresses fit the target networks", Severity.WARN, catalogue=(47,))
def addresses(facts: PrecheckFacts) -> Answer:
    """Fixed addresses outside the target network's ranges are cut off until the guest is configured anew."""
    outside, seen = [], 0
    for nic, network in mapped_networks(facts):
        ranges = [ipaddress.ip_network(cidr, strict=False) for cidr in network.cidrs]
        for text in nic.addresses:
            address = ipaddress.ip_address(text.split("/")[0].split("%")[0])
            if not ranges or address.is_link_local:
                continue
            seen += 1
            if not any(address in one for one in ranges):
                outside.append(f"{text} outside {network.name} ({listed(network.cidrs)})")
    if outside:
        return found(listed(outside), "plan for DHCP or new addresses in the guest, or map another target network")
    if the_vm(facts).nics and not seen:
        raise FactMissing("the guest's addresses or the ranges of the target networks")
    return ok(f"{seen} addresses fit")


@rule("network.filters", "no filters or limits get lost", Severity.WARN, catalogue=(50,))
def filters(facts: PrecheckFacts) -> Answer:
    """Packet filters and bandwidth limits of the source are not made at the target."""
    the_vm(facts)
    present = (*facts.source.network_filters, *facts.source.bandwidth_limits)
    if present:
        return found(f"filters and limits at the source: {listed(present)}", "define them at the target as well")
    return ok("no filters or limits")


@rule("network.isolated", "the target networks lead outside", Severity.INFO, catalogue=(54,))
def isolated(facts: PrecheckFacts) -> Answer:
    """An isolated network is right for a rehearsal and wrong for production."""
    alone = sorted({network.name for _, network in mapped_networks(facts) if network.isolated})
    if alone:
        return found(
            f"isolated from everything else: {listed(alone)}", "map another network unless this is a rehearsal"
        )
    return ok("no isolated networks")


@rule("network.one-per-mac", "the VM's own MACs differ", Severity.BLOCK, catalogue=(45,))
def own_macs(facts: PrecheckFacts) -> Answer:
    """Two cards of the VM with one MAC would be put on one network when both are mapped to it."""
    spots = [(nic.mac.lower(), facts.plan.network_for(nic.network)) for nic in the_vm(facts).nics]
    double = sorted({mac for mac, network in spots if spots.count((mac, network)) > 1})
    if double:
        return found(
            f"two cards with one MAC on one target network: {listed(double)}", "map them to different networks"
        )
    return ok("no MAC twice on one target network")


RULES = (mapped, exists, active, mac, own_macs, mtu, link, addresses, filters, isolated)
