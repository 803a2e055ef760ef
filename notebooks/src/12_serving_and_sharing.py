# %% [markdown]
# # 12 · Serving and sharing
#
# <!-- badges -->
#
# > **You will learn** what each file of a trained model and of a checkpoint is for; how to merge a LoRA adapter; to ask
# > the base and the trained model side by side; to serve a model over the OpenAI API; to export it with a model card,
# > zip it and push it to the Hub; to deploy it in the cloud and to delete it again.
# >
# > **Time** the machine: 1 minute on a CPU, 5 on a GPU · you: 45 minutes · **Needs** notebook 06 in the same
# > OUTPUT_DIR. If its model is missing, it is trained here, in 5 minutes on a CPU; `scripts/fast_forward.py
# > --notebook 6` copies a finished one in seconds.

# %% tags=["setup"]
# The builder writes this cell: notebooks/src/setup_cell.py.

# %% tags=["parameters"]
RECIPE = "countdown-grpo"
HARDWARE = "cpu"  # or "auto", or one of the GPU tiers
OUTPUT_DIR = "outputs"
SEED = 0

# %%
from pathlib import Path

from lab_utils.config import load
from lab_utils.machine.gpu import check_machine
from lab_utils.tasks import load_task
from lab_utils.training.stages import finished_run

config = load(RECIPE, HARDWARE, {"seed": SEED})
check_machine(config)
task = load_task(config.task)
run = finished_run(config, Path(OUTPUT_DIR) / task.name, config.stages[-1])
print(f"The trained model is in {run.model_dir}.")

# %% [markdown]
# ## What training leaves behind
#
# A model is a folder of files. None of them is magic, and it pays to know which ones you need. This is the folder of
# the trained model.

# %%
import pandas as pd

from lab_utils.sharing.export import describe

pd.set_option("display.max_colwidth", None)
pd.DataFrame(describe(run.model_dir))

# %% [markdown]
# A **checkpoint** is something else: it holds what the trainer needs to resume. Look at the sizes.

# %%
pd.DataFrame(describe(run.last_checkpoint()))

# %% [markdown]
# To *use* the model you need three kinds of files: the configuration, the weights, and the tokenizer with its chat
# template. To *resume training* you need the other files as well. The optimizer's state is about twice as large as the
# trained weights, because Adam keeps two running means for each of them. With LoRA, the trained weights are only those
# of the adapter, a few MB, and the optimizer's state shrinks with them.
#
# ## Inside a safetensors file
#
# The file begins with eight bytes, a number: the length of the header. The header is JSON. It gives the name, type,
# shape and position of every tensor. The rest is bytes. You can read the file with nothing but the standard library,
# and that is the point: loading it runs no code. A `.bin` or `.pt` file is a Python pickle, which can run anything when
# you load it.

# %%
import json
import math

weights_file = next(run.model_dir.glob("*model.safetensors"))
with open(weights_file, "rb") as file:
    header_length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(header_length))
tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
print(f"{weights_file.name}: a header of {header_length:,} bytes with {len(tensors)} tensors")
for name, entry in list(tensors.items())[:6]:
    print(f"  {name:<45} {entry['dtype']}  {entry['shape']}")
parameters = sum(math.prod(entry["shape"]) for entry in tensors.values())
print(f"{parameters:,} parameters; header and tensors take {weights_file.stat().st_size:,} bytes")

# %% [markdown]
# Check the sum: parameters × bytes each, plus the header and the eight bytes, is the size of the file. F32 takes four
# bytes per parameter, BF16 takes two. A model of 0.5 billion parameters in bfloat16 is a file of 1 GB. So a file's size
# tells you what is in it.
#
# ## Merging an adapter
#
# LoRA (notebook 03) does not change a layer's weight $W$. It learns two small matrices, $A$ of shape (r, in) and $B$ of
# shape (out, r). The layer then computes with
#
# $$W' = W + \frac{\alpha}{r} B A$$
#
# You can keep the adapter separate, a few MB for each task on one base model, and swap it while a server runs. Or you
# can *merge* it: compute $W'$ once and save it. Then the model is an ordinary one again, and its users need not know
# about LoRA.
#
# By hand: $W = 0$, $A = (1, 2)$, $B = (3, 4)^T$, $\alpha = 2$, $r = 1$ gives the rows (6, 12) and (8, 16).
#
# ## Exercise 1: merge an adapter
#
# *Difficulty: easy · importance: high · about 10 minutes*
#
# Compute $W'$. The rank r is not an argument: read it from A. Return a new tensor, and do not change the base weight.

# %%
import torch


def merge_lora(weight, lora_A, lora_B, alpha):
    """Return the merged weight: (out, in), (r, in), (out, r) -> (out, in)."""
    # YOUR CODE HERE
    # >>> solution
    rank = lora_A.shape[0]
    return weight + alpha / rank * (lora_B @ lora_A)
    # <<< solution


merge_lora(torch.zeros(2, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), alpha=2)

# %% [markdown] tags=["hints"]
# 1. Which of A and B comes first? The product must have the shape (out, in) of the weight. Which shape holds r?
# 2. `lora_B @ lora_A` has the right shape, and r is `lora_A.shape[0]`. `weight + ...` makes a new tensor; `weight +=
#    ...` would change the base weight.

# %%
from lab_utils.teaching import checks

checks.check_merge_lora(merge_lora)

# %% [markdown]
# Now compare it with the library. PEFT adds a random adapter of rank 4 to the tiny model and merges it. Your function
# gets the same three matrices of one layer.

# %%
from peft import LoraConfig, get_peft_model

from lab_utils.models import load_model

adapted = get_peft_model(load_model("tiny"), LoraConfig(r=4, lora_alpha=8, init_lora_weights=False))
layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
with torch.no_grad():
    matrices = (layer.base_layer.weight.clone(), layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    yours = merge_lora(*matrices, alpha=8)
    merged = adapted.merge_and_unload().model.layers[0].self_attn.q_proj.weight
print(f"changed by the adapter: {(yours - matrices[0]).abs().max():.3f} at most")
print(f"yours and PEFT's:       differ by {(yours - merged).abs().max():.1e} at most")

# %% [markdown]
# The second number is 0 or rounding. Rounding grows with fewer bits: merged in bfloat16, $W'$ keeps two to three
# significant digits, and a part of a small update is lost. Also, an adapter trained on a 4-bit base was trained on
# *rounded* weights. Merged into the exact ones it behaves a little differently. Evaluate a model again after merging.
#
# ## Side by side
#
# Ask the model before and after training. Each answer becomes a line of a JSONL file: query, model, reasoning, answer
# and the whole response. Other tools can read that format.
#
# Both models are asked in the chat format, in which the base model has never seen a question; notebook 08 also asks it
# in plain text. The completions are sampled at the temperature of the evaluation, at which the model was trained. At
# temperature 0 only the likeliest token counts, and the tiny model can repeat one attempt until it is cut off.

# %%
from lab_utils.models import load_tokenizer
from lab_utils.sampling.local import sample
from lab_utils.sharing.chat import append_jsonl, as_prompt, chat_records
from lab_utils.teaching.inspection import side_by_side

models = {"base": config.model.name, "trained": run.model_dir}
loaded = {label: (load_model(name, config.model), load_tokenizer(name)) for label, name in models.items()}
how = {"temperature": config.evaluation.temperature, "max_new_tokens": config.evaluation.max_new_tokens, "seed": SEED}
word_problem = "Anna has 3 pens and buys 4 more. How many pens does she have now?"
queries = ["9 14 20 25", "20 16 22 26", "1 8 12 96"] if task.name == "countdown" else [word_problem]
chat_file = Path(OUTPUT_DIR) / "chat" / f"{config.recipe}.jsonl"
for query in queries:
    prompt = as_prompt(task, query)
    responses = {label: sample(*pair, [prompt], **how)[0][0].text for label, pair in loaded.items()}
    print(prompt[-1]["content"], side_by_side(responses), sep="\n", end="\n\n")
    append_jsonl(chat_file, chat_records(task, query, responses))
print(f"the last line of {chat_file}:\n{chat_file.read_text(encoding='utf-8').splitlines()[-1]}")

# %% [markdown]
# In a terminal you can type your own questions:
#
# ```bash
# python scripts/chat.py outputs/countdown/grpo
# ```
#
# ## Serving
#
# A **server** keeps the model in memory and answers over HTTP. Nearly all servers speak the OpenAI API, so any client
# can ask any server: a list of messages goes in, a message comes out. The client never sees the chat template. The
# server applies it, and that is why the template belongs in the model's folder.
#
# With a GPU you serve with **vLLM**. It answers many questions at once: at every token, a finished one can leave and a
# waiting one can enter. It keeps the cache of keys and values in small blocks, so it reserves no memory for tokens that
# are never written. Without vLLM, the workshop serves with `transformers serve`.
#
# ## Exercise 2: how many responses fit at once?
#
# *Difficulty: medium · importance: high · about 15 minutes*
#
# A server is fast because it answers many questions together. Its memory sets the limit. For every token of every
# response, each layer keeps a key and a value for each of its **key-value heads**. Qwen has fewer of these than
# attention heads: several attention heads share one (grouped-query attention).
#
# Return how many responses of `tokens` tokens fit at once, next to the weights, into `memory` bytes. Weights, keys and
# values are bfloat16. `config` has some entries of a config.json. Other memory that a server needs is left out.
#
# By hand: 2 layers, 2 key-value heads and `head_dim` 8 make 2 · 2 · 8 = 32 numbers for the keys and as many for the
# values, so 128 bytes per token. 180,000 parameters take 360,000 of 1,000,000 bytes. The other 640,000 hold 5,000
# tokens, or 50 responses of 100 tokens.


# %%
def responses_at_once(config, parameters, memory, tokens):
    """Return the number of responses of `tokens` tokens that fit into `memory` bytes beside the weights."""
    # YOUR CODE HERE
    # >>> solution
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    free = memory - 2 * parameters
    return max(0, free // (2 * numbers * tokens))
    # <<< solution


# %% [markdown] tags=["hints"]
# 1. Write three lines: the bytes of one token, the bytes that the weights leave, and how many responses these hold.
#    What if the weights alone do not fit?
# 2. One token takes 2 (key and value) × layers × key-value heads × `head_dim` numbers of 2 bytes. `//` rounds down, and
#    `max(0, ...)` covers a model that is too large.

# %%
checks.check_responses_at_once(responses_at_once)

# %% [markdown]
# Qwen2.5-0.5B on a GPU with 16 GB:

# %%
qwen = {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}
for tokens in (4096, 1024, 256):
    print(f"{responses_at_once(qwen, 494_000_000, 16_000_000_000, tokens):,} responses of {tokens:,} tokens at once")

# %% [markdown]
# A server that reserved 4,096 tokens for every response could hold only the first number, even if most responses end
# after 256. That is why vLLM gives out its memory in small blocks, as tokens are written.
#
# Now serve your own model. Most of the next cell's time goes into starting the server.

# %%
import time

from lab_utils.sharing.serving import NO_SERVER, ask, backend, served_models, serving

greedy = sample(*loaded["trained"], [prompt], temperature=0.0, max_new_tokens=48)[0][0].text  # to compare with
loaded.clear()  # on a GPU the server needs the memory
if backend() is None:
    print(NO_SERVER)
else:
    print(f"serving with {backend()}, which {'is' if backend() == 'vLLM' else 'is used because vLLM is not'} installed")
    start = time.perf_counter()
    with serving(run) as url:
        print(f"ready after {time.perf_counter() - start:.0f} s; it serves: {', '.join(served_models(url))}")
        start = time.perf_counter()
        answer = ask(url, prompt, max_new_tokens=48, temperature=0.0)
        print(f"answered in {time.perf_counter() - start:.1f} s, 48 tokens at most:\n{answer}")
    print(f"\nthe same as without a server: {answer.strip() == greedy.strip()}")

# %% [markdown]
# At temperature 0 the server should give the same text as the model without it. If it does not, look for a missing chat
# template, another end token, or a sampling default. The generation config of Qwen's instruct models has a temperature
# and a repetition penalty, and servers apply them silently. In bfloat16, rounding may also change a word.
#
# In a terminal, for as long as you like:
#
# ```bash
# python scripts/serve.py start outputs/countdown/grpo
# python scripts/chat.py outputs/countdown/grpo --server http://127.0.0.1:8000
# python scripts/serve.py swap outputs/another/grpo
# ```
#
# The last line is for adapters on vLLM. vLLM serves base and trained model together, and replaces the adapter
# while the server runs. That way you can try out a training run every few steps.
#
# ## Export
#
# An export is one folder that anyone can load, with the adapter merged and with a **model card**. The card says what
# the model was trained on and how, what was measured, and what the model cannot do. It is written from the run
# directory, and it claims nothing that was not measured.

# %%
import shutil

from lab_utils.evaluation import evaluate_run
from lab_utils.sharing.export import export_run

if not run.evaluation_path.exists():
    evaluate_run(run, config)
folder = Path(OUTPUT_DIR) / "export" / config.recipe
shutil.rmtree(folder, ignore_errors=True)  # an export never overwrites, and this cell makes it again each time
export_run(run, folder)
pd.DataFrame(describe(folder))

# %%
card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]  # the part before it is for the Hub
recipe, metrics = card.index("## Recipe"), card.index("## Metrics")
print(f"{card[:recipe]}[the recipe: {metrics - recipe:,} characters]\n\n{card[metrics:]}")

# %% [markdown]
# Read the limits aloud. Would a stranger who finds this model know what not to use it for?
#
# The proof of an export: load it without any code of the workshop, and get the same answer.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs.to(model.device), max_new_tokens=48, do_sample=False)[0]
text = tokenizer.decode(output[inputs["input_ids"].shape[1]:], skip_special_tokens=True)
print(text)
print(f"\nthe same as the run's model: {text == greedy}")

# %% [markdown]
# ## A zip file, and the Hub
#
# A zip file is for a colleague. The **Hugging Face Hub** is for everyone, or for your own machines if the repository
# is private. A push needs a token with write permission. `hf auth login` asks for it once and keeps it outside your
# project. Never write a token into a notebook, which saves it with the outputs. A dry run shows what would be sent.

# %%
from lab_utils.sharing.export import push_to_hub, zip_folder

archive = zip_folder(folder)
print(f"{archive.name}: {archive.stat().st_size / 1e3:,.0f} kB\n")
print(push_to_hub(folder, "your-name/countdown-tiny", dry_run=True))

# %% [markdown]
# All of this in one command, including the push:
#
# ```bash
# python scripts/export.py outputs/countdown/grpo --output-dir shared/it --zip --push-to your-name/it --dry-run
# ```
#
# ## An endpoint in the cloud, and its end
#
# A SageMaker **endpoint** is the same vLLM server on a rented machine. Unlike a training job it does not end: it costs
# money every hour, used or not, until *you* delete it. `--dry-run` prints the cost per hour and the requests, and needs
# no account.

# %%
import subprocess
import sys

command = [sys.executable, "scripts/launch_sagemaker.py", "deploy", "--model", "s3://your-bucket/model.tar.gz",
           "--role", "arn:aws:iam::123456789012:role/your-role", "--region", "us-east-1", "--dry-run"]
result = subprocess.run(command, capture_output=True, text=True)
print(result.stderr, result.stdout, sep="\n")

# %% [markdown]
# The three requests are a *model* (which container, which weights), an *endpoint configuration* (which machine, how
# many) and the *endpoint* itself. With an account and a finished training job from notebook 11:
#
# ```bash
# python scripts/launch_sagemaker.py deploy --job YOUR-JOB --wait
# python scripts/launch_sagemaker.py invoke YOUR-ENDPOINT --recipe countdown-grpo --question "9 14 20 25"
# python scripts/launch_sagemaker.py delete YOUR-ENDPOINT
# python scripts/launch_sagemaker.py status
# ```
#
# The last command lists everything that still runs and costs money. Make it a habit to end with it.
#
# ## What you should see, and what it means if you don't

# %%
from lab_utils.teaching.inspection import expect

lines = [json.loads(line) for line in chat_file.read_text(encoding="utf-8").splitlines()]
answered = {label: sum(line["answer"] is not None for line in lines if line["model"] == label) for label in models}
expect(config, "the trained model answers in the format more often", answered["trained"] > answered["base"])
expect(config, "the exported model answers as the run does", text == greedy)
expect(config, "the served model answers as the run does", backend() is None or answer.strip() == greedy.strip())

# %% [markdown]
# An exported model that answers differently has lost something on the way. Compare the tokenizer's chat template, the
# end tokens in `generation_config.json` and the dtype in `config.json`, in this order.
#
# ## Summary
#
# - A model is a configuration, weights and a tokenizer with its chat template. A checkpoint adds what training needs.
# - Merging computes $W + \frac{\alpha}{r} B A$, layer by layer. A merged model is simple to share; a separate adapter
#   is small and can be swapped.
# - Servers share one API. What they apply silently (template, end tokens, sampling defaults) is part of your model.
# - Share with a card that says what was measured and what was not. Keep tokens out of notebooks. Delete endpoints.
#
# ## Questions
#
# Think first. The answers are in [ANSWERS.md](ANSWERS.md).
#
# 1. You trained ten adapters on one base model of 1 GB. What do you store and serve, merged or separate? What if each
#    adapter has its own customers, who all ask at once?
# 2. Somebody sends you a model as a `.bin` file. What do you do before you load it?
# 3. Your served model repeats itself less than in your evaluation, and is correct less often. Where do you look first?
# 4. The card gives an accuracy on synthetic problems. Which sentence would you add for a reader who wants to use the
#    model at school?
#
# Next: [13 · Results](13_results.ipynb) tells the whole story in figures.
