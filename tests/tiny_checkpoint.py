"""A checkpoint of a random Llama that chats in bytes, for tests that start from one."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from maxpo import lm
from maxpo.lm.model.pretrained import save_pretrained
from maxpo.runs import load_config

END, ROLE, PAD, START = SPECIAL = ("<|im_end|>", "<|im_start|>", "<pad>", "<s>")
TEMPLATE = (
    "{% if mood is defined %}[{{ mood }}]{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_checkpoint(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Writes one of 260 tokens; needs the packages tokenizers and safetensors.

    Texts begin with a start token, and two tokens end a completion: the padding is the second.
    """
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": END,
        "pad_token": PAD,
        "bos_token": START,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [vocabulary[END], vocabulary[PAD]]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    ours = lm.load_tokenizer(folder)
    model, _ = lm.new("nano", ours, context_length=96, hidden=16, heads=2, layers=1, mlp=16)
    save_pretrained(model, folder)
    return folder


def make_tiny_config(folder: Path, checkpoint: Path) -> ConfigDict:
    """Of a study that starts from a checkpoint, with a few problems that it writes to a folder."""
    for name, numbers in (("train", "1234"), ("held_out", "567")):
        lines = [json.dumps({"question": f"{n}+{n}=", "answer": "5"}) for n in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    config = load_config("configs/lm.py:jsonl")
    config.methods = ("rloo",)
    config.task.train_path = str(folder / "train.jsonl")
    config.task.held_out_path = str(folder / "held_out.jsonl")
    config.model.pretrained = str(checkpoint)
    return config
