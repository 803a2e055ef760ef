"""A served adapter answers over the OpenAI API as transformers does, and can be swapped while the server runs."""

import shlex

import pytest
from trl.scripts.vllm_serve import ScriptArguments, build_command

from lab_utils.config import ConfigError, load
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import sample
from lab_utils.sampling.vllm import check_vllm, server_command
from lab_utils.sharing.serving import ServingError, ask, served_models, serving, swap_adapter
from lab_utils.tasks import load_task

pytestmark = [pytest.mark.component, pytest.mark.timeout(400)]
TOKENS = 24


@pytest.fixture(scope="module")
def prompt():
    return load_task("countdown").prompt({"nums": [3, 7, 25], "target": 46})


@pytest.fixture(scope="module")
def runs(adapter_run):
    return adapter_run(seed=1), adapter_run(seed=2)


@pytest.fixture(scope="module")
def server(runs):
    with serving(runs[0]) as url:
        yield url


def by_transformers(model, prompt):
    [[completion]] = sample(load_model(model), load_tokenizer(model), [prompt], temperature=0.0, max_new_tokens=TOKENS)
    return completion.text


def test_an_openai_client_gets_what_transformers_gives(server, runs, prompt):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none is needed")
    for name, model in (("base", "tiny"), ("trained", runs[0].model_dir)):
        reply = client.chat.completions.create(model=name, messages=prompt, max_tokens=TOKENS, temperature=0)
        assert reply.choices[0].message.content == by_transformers(model, prompt)


def test_base_and_trained_model_are_served_side_by_side(server, runs, prompt):
    assert served_models(server) == ["base", "trained"]
    answers = {name: ask(server, prompt, model=name, max_new_tokens=TOKENS) for name in ("base", "trained")}
    assert answers == {"base": by_transformers("tiny", prompt), "trained": by_transformers(runs[0].model_dir, prompt)}
    assert answers["base"] != answers["trained"]


def test_an_adapter_is_swapped_without_a_restart(server, runs, prompt):
    first, second = (by_transformers(run.model_dir, prompt) for run in runs)
    assert first != second
    assert ask(server, prompt, max_new_tokens=TOKENS) == first
    swap_adapter(server, runs[1].model_dir)
    assert ask(server, prompt, max_new_tokens=TOKENS) == second
    swap_adapter(server, runs[0].model_dir)
    assert ask(server, prompt, max_new_tokens=TOKENS) == first


def test_a_server_for_rollouts_is_checked(server, with_vllm):
    """TRL passes weights to a server over NCCL, between GPUs. What comes before that is checked here."""
    config = load("countdown-grpo", "cpu", {"grpo.vllm_mode": "server", "grpo.vllm_server_url": server})
    check_vllm(with_vllm(config, "grpo"), "grpo")
    longer = load("countdown-grpo", "cpu", {"grpo.vllm_mode": "server", "grpo.vllm_server_url": server,
                                            "grpo.max_completion_length": 4000})
    with pytest.raises(ConfigError, match="takes .* tokens, and grpo needs 4128"):
        check_vllm(with_vllm(longer, "grpo"), "grpo")


def test_vllm_takes_the_command_for_a_server():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = shlex.split(server_command(load("gsm8k-grpo", "a10g-x4-server"), "grpo"))
    serve = words.index("serve")
    options = make_arg_parser(FlexibleArgumentParser()).parse_args(words[serve + 1 :])
    assert (options.model_tag, options.max_model_len) == ("Qwen/Qwen2.5-0.5B-Instruct", 1024)
    assert options.weight_transfer_config.backend == "nccl" and options.logprobs_mode == "processed_logprobs"
    by_trl = build_command(ScriptArguments(model="it"))  # all that TRL wants of a server, whatever its sizes
    wanted = by_trl[by_trl.index("--enable-scale-out") :]
    assert set(wanted) <= set(words)


def test_what_the_server_refuses_is_named(server, prompt):
    with pytest.raises(ServingError, match="nobody"):
        ask(server, prompt, model="nobody", max_new_tokens=TOKENS)
    with pytest.raises(ServingError, match="no LoRA adapter"):
        swap_adapter(server, "tiny")
