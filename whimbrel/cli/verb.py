"""Sends one of the operator's verbs to migrations and tells what each answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.text import Text
from temporalio.client import Client

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault, explain
from whimbrel.cli.find import find
from whimbrel.cli.output import emit, note
from whimbrel.cli.session import converse, need_worker
from whimbrel.contracts.names import CONTROL_QUEUE
from whimbrel.contracts.verbs import VerbAnswer
from whimbrel.model.endpoint import Frozen

ANSWER_TIMEOUT_S = 60.0


class Answer(Frozen):
    """What one migration said; its JSON."""

    workflow_id: str
    accepted: bool
    message: str
    action: str = ""


def say(verb: str, argument: Frozen, target: str, vms: Sequence[str], *, every: bool, as_json: bool) -> int:
    """Ask every migration that is meant; the exit code is FAILED when one refused."""

    async def body(client: Client) -> list[Answer]:
        ids = await find(client, target, vms, every=every)
        await need_worker(client, CONTROL_QUEUE)
        return list(await asyncio.gather(*(_ask(client, verb, argument, workflow_id) for workflow_id in ids)))

    answers = converse(body)
    command = verb.replace("_", "-")
    refused = [answer for answer in answers if not answer.accepted]
    if refused and len(answers) == 1:
        raise Fault(ExitCode.FAILED, "Refused", f"{refused[0].workflow_id}: {refused[0].message}", refused[0].action)
    lines = [Text(f"{answer.workflow_id}: {answer.message}") for answer in answers if answer.accepted]
    emit(command, [answer.model_dump() for answer in answers], *lines, as_json=as_json)
    for answer in refused:
        note(f"whimbrel {command}: {answer.workflow_id}: {answer.message}; what to do: {answer.action}")
    return ExitCode.FAILED if refused else ExitCode.OK


async def _ask(client: Client, verb: str, argument: Any, workflow_id: str) -> Answer:
    handle = client.get_workflow_handle(workflow_id)
    try:
        asked = handle.execute_update(
            verb, argument, result_type=VerbAnswer, rpc_timeout=timedelta(seconds=ANSWER_TIMEOUT_S)
        )
        answer = await asyncio.wait_for(asked, ANSWER_TIMEOUT_S)
    except Exception as error:
        fault = explain(error)
        if fault is None or fault.exit_code is not ExitCode.FAILED:
            raise
        return Answer(workflow_id=workflow_id, accepted=False, message=fault.message, action=fault.action)
    return Answer(workflow_id=workflow_id, accepted=True, message=answer.message)
