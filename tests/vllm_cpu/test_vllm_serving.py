"""A served adapter answers over the OpenAI API as transformers does, and can be swapped while the server runs."""

import pytest

from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import sample
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


def test_a_refusal_of_the_server_names_its_cause(server, prompt):
    with pytest.raises(ServingError, match="unknown-model"):
        ask(server, prompt, model="unknown-model", max_new_tokens=TOKENS)
    with pytest.raises(ServingError, match="not a LoRA adapter"):
        swap_adapter(server, "tiny")
