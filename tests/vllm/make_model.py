"""Make a tiny random-weight Hugging Face model directory that vLLM can serve offline.

    python make_model.py OUT_DIR [--hidden 256] [--layers 8] [--max-len 16384]

So many layers that a step takes a few milliseconds: with quicker ones eight streams are more tokens a second than
vLLM's API server can hand on, on two cores, and then it answers nobody else, `/metrics` included, for many seconds.

No network: a byte-level BPE tokenizer is trained on this Python's own standard-library sources (the same for one
Python version), and the weights are random from a seed. Needs tokenizers, transformers and torch, as vLLM does.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER_SOURCES = 80
VOCABULARY = 4096


def main() -> None:
    """Write config, weights, tokenizer and chat template to the directory named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--max-len", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    make(arguments.out, arguments.hidden, arguments.layers, arguments.max_len, arguments.seed)


def make(out: Path, hidden: int, layers: int, max_len: int, seed: int) -> None:
    """Train the tokenizer, draw the weights, save both under `out`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:TOKENIZER_SOURCES]
    tokenizer.train([str(path) for path in sources], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=max_len,
        chat_template=CHAT_TEMPLATE,
    )
    heads = max(4, hidden // 64)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        max_position_embeddings=max_len,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    set_seed(seed)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(out)
    fast.save_pretrained(out)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{out}: {parameters / 1e6:.1f} M parameters, vocabulary {len(fast)}")


if __name__ == "__main__":
    main()
