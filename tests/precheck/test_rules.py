"""Every rule, with facts that make it content, facts that make it object, and facts that are missing."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.precheck.case import Case
from tests.precheck.cases import CASES
from tests.precheck.healthy import healthy
from whimbrel.model.finding import Severity
from whimbrel.precheck.registry import RULES
from whimbrel.precheck.rule import Rule

BY_ID = {rule.id: rule for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_healthy_facts_content_every_rule(rule: Rule) -> None:
    finding = rule(healthy())
    assert finding.outcome == "ok", finding
    assert finding.found


@pytest.mark.parametrize("case", CASES, ids=[f"{index}-{case.rule}-{case.outcome}" for index, case in enumerate(CASES)])
def test_case(case: Case) -> None:
    """Outcome, severity and words are as expected; what is found always says what to do."""
    rule = BY_ID[case.rule]
    finding = rule(case.facts)
    assert finding.outcome == case.outcome, finding
    assert finding.rule == case.rule
    assert finding.severity == (case.severity or rule.severity)
    for words in case.says:
        assert words in f"{finding.found} {finding.action}"
    if case.outcome == "found":
        assert finding.action
        assert finding.blocks == (finding.severity is Severity.BLOCK)
    else:
        assert not finding.blocks


def test_every_rule_has_a_case_that_objects() -> None:
    counted = Counter(case.rule for case in CASES if case.outcome == "found")
    assert {rule.id for rule in RULES} == set(counted)


def test_every_rule_that_asks_for_the_vm_says_so_when_there_is_none() -> None:
    """Rules answer, or say that the VM is not known; none of them breaks."""
    lost = healthy().model_copy(update={"source": healthy().source.model_copy(update={"vm": None})})
    broken = [finding for rule in RULES if "itself failed" in (finding := rule(lost)).found]
    assert broken == []
