"""A pre-training step and a large picture: VLMo of this package beside the plain arithmetic of the original.

    python benchmarks/vlmo.py [--size base] [--batch_size 4] [--rounds 3] [--device cpu]

The plain way, written here for the comparison on the same weights: the position bias of all blocks gathered at once in
every forward, attention with float32 scores and a manual softmax, every text padded to 40 tokens, every objective
encoding its own inputs (one fusion pass for masked words, two single passes with branches, three fusion passes for
matching). Ours: bias per block, the library's fused attention, texts padded to the longest, pictures embedded once,
the four fusion passes as one batch, and a last block that computes only the positions that are read.

1. Training steps (forward, backward, AdamW) at 224 pixels. Both see the same captions (8 to 16 tokens), masks and
   negatives; the losses must agree to 1e-4.
2. Forward passes of pairs at 480 pixels, where the bias dominates: time, and peak memory beyond the weights.

Both ways take turns within a round; times are medians over the rounds, ratios medians of the rounds' ratios.
"""

import argparse
import statistics

import torch
from timing import median_ratio, peak_memory, take_turns
from torch import nn
from torch.nn import functional as F

from hf_vlp import VlmoConfig, VlmoForPreTraining
from hf_vlp.models.mome.configuration_vlmo import PUBLISHED_SIZES
from hf_vlp.models.mome.mome import (
    make_image_position_index,
    make_pair_position_index,
    make_text_position_index,
)

TEXT_LENGTH = 40
TINY = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vl_expert_start_layer": 2,
}
SIZES = {**PUBLISHED_SIZES, "tiny": TINY}


class PlainVlmo:
    """The original's order of work on the weights of one of our models; its bias table is one tensor."""

    def __init__(self, model: VlmoForPreTraining):
        self.model, self.base, self.config = model, model.vlmo, model.config
        tables = [layer.attention.position_bias_table for layer in self.base.layers]
        self.table = (
            None if tables[0] is None else nn.Parameter(torch.cat([table.detach() for table in tables], dim=1))
        )

    def parameters(self):
        own = [] if self.table is None else [self.table]
        return own + [p for name, p in self.model.named_parameters() if not name.endswith("position_bias_table")]

    def bias_of_all_blocks(self, text_length: int, has_image: bool) -> list[torch.Tensor | None]:
        config = self.config
        if self.table is None:
            return [None] * config.num_hidden_layers
        window, device = config.window_size, self.table.device
        parts = []
        if text_length:
            parts.append(make_text_position_index(text_length, window, config.max_text_length_of_table, device))
        if has_image:
            parts.append(make_image_position_index(window, device))
        index = make_pair_position_index(*parts, window) if len(parts) == 2 else parts[0]
        bias = F.embedding(index, self.table).permute(2, 0, 1)  # (blocks x heads, length, length)
        return list(bias.reshape(config.num_hidden_layers, config.num_attention_heads, *index.shape))

    def attend(self, attention, hidden, mask, bias):
        batch, length, dim = hidden.shape
        zeros = torch.zeros_like(attention.q_bias, requires_grad=False)
        qkv = F.linear(hidden, attention.qkv.weight, torch.cat((attention.q_bias, zeros, attention.v_bias)))
        query, key, value = qkv.reshape(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (query * attention.scaling).float() @ key.float().transpose(-2, -1)
        if bias is not None:
            scores = scores + bias.unsqueeze(0)
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(dim=-1).type_as(hidden)
        return attention.output((weights @ value).transpose(1, 2).reshape(batch, length, dim))

    def run_block(self, block, hidden, mask, bias, expert, text_length):
        def scaled(update, scale):
            return update if scale is None else scale * update

        update = self.attend(block.attention, block.attention_norm(hidden), mask, bias)
        hidden = hidden + scaled(update, block.attention_scale)
        if expert is not None:
            return hidden + scaled(block.experts[expert](hidden), block.expert_scale)
        text, image = hidden[:, :text_length], hidden[:, text_length:]
        text = text + scaled(block.experts["text"](text), block.expert_scale)
        image = image + scaled(block.experts["image"](image), block.expert_scale)
        return torch.cat((text, image), dim=1)

    def encode(self, pixel_values=None, input_ids=None, mask=None, branch=False):
        base, start = self.base, self.config.vl_expert_start_layer
        parts, text_length = [], 0
        if input_ids is not None:
            parts.append(base.embed_text(input_ids))
            text_length = input_ids.shape[1]
        if pixel_values is not None:
            parts.append(base.embed_image(pixel_values))
            seen = torch.ones(parts[-1].shape[:2], dtype=torch.bool, device=pixel_values.device)
            mask = seen if mask is None else torch.cat((mask, seen), dim=1)
        hidden = torch.cat(parts, dim=1)
        bias = self.bias_of_all_blocks(text_length, pixel_values is not None)
        single = None if len(parts) == 2 else "text" if text_length else "image"
        for index, block in enumerate(base.layers):
            if index == start:
                below = hidden
            expert = single or ("vl" if index >= start else None)
            hidden = self.run_block(block, hidden, mask, bias[index], expert, text_length)
        hidden = base.norm(hidden)
        if not branch:
            return hidden
        for index in range(start, len(base.layers)):
            below = self.run_block(base.layers[index], below, mask, bias[index], "vl", text_length)
        return hidden, base.norm(below)

    def contrast(self, image, text, image_projection, text_projection, scale):
        image = F.normalize(image_projection(image[:, 0]), dim=-1)
        text = F.normalize(text_projection(text[:, 0]), dim=-1)
        logits = scale.exp() * image @ text.t()
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2

    def loss(self, batch) -> torch.Tensor:
        model, pixels, ids = self.model, batch["pixel_values"], batch["input_ids"]
        mask = batch["attention_mask"].bool()
        fused = self.encode(pixels, batch["mlm_input_ids"], mask)
        logits = model.mlm_head(fused[:, : ids.shape[1]])
        mlm = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        image, image_vl = self.encode(pixel_values=pixels, branch=True)
        text, text_vl = self.encode(input_ids=ids, mask=mask, branch=True)
        itc = self.contrast(image, text, model.itc_image_projection, model.itc_text_projection, model.logit_scale)
        itc_vl = self.contrast(
            image_vl, text_vl, model.itc_image_vl_projection, model.itc_text_vl_projection, model.logit_vl_scale
        )
        images, texts = batch["itm_negative_image_index"], batch["itm_negative_text_index"]
        passes = ((pixels, ids, mask), (pixels[images], ids, mask), (pixels, ids[texts], mask[texts]))
        pooled = torch.cat([self.base.pooler(self.encode(*one)) for one in passes])
        labels = torch.zeros(len(pooled), dtype=torch.long, device=pooled.device)
        labels[: len(pixels)] = 1
        itm = F.cross_entropy(model.itm_head(pooled), labels)
        return 0.25 * mlm + 0.5 * (itc + itc_vl) + itm


def make_model(config: VlmoConfig, device: str) -> VlmoForPreTraining:
    """Random weights far from their initial values, whose small scales and zero bias would hide a wrong result."""
    torch.manual_seed(0)
    model = VlmoForPreTraining(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.5 if name.endswith(("position_bias_table", "_scale")) and parameter.ndim else 0.02
            parameter.add_(std * torch.randn_like(parameter))
    return model.to(device)


def make_batch(config: VlmoConfig, batch_size: int, device: str) -> tuple[dict, dict]:
    """The same pairs with texts padded to the longest, and padded to 40."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 17, (batch_size,), generator=generator)
    ids = torch.randint(1000, config.vocab_size, (batch_size, TEXT_LENGTH), generator=generator)
    mask = (torch.arange(TEXT_LENGTH) < lengths[:, None]).long()
    labels = torch.full_like(ids, -100)
    labels[:, 2:4] = ids[:, 2:4]
    ids, order = ids * mask, torch.arange(batch_size)
    batch = {
        "pixel_values": torch.randn(batch_size, 3, config.image_size, config.image_size, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
        "mlm_input_ids": ids.masked_fill(labels != -100, 103),
        "labels": labels,
        "itm_negative_image_index": (order + 1) % batch_size,
        "itm_negative_text_index": (order - 1) % batch_size,
    }
    padded = {name: value.to(device) for name, value in batch.items()}
    longest = int(lengths.max())
    cut = ("input_ids", "attention_mask", "mlm_input_ids", "labels")
    return {name: value[:, :longest] if name in cut else value for name, value in padded.items()}, padded


def compare(ways: dict, arguments) -> tuple[dict[str, float], float, dict]:
    """Median times of "plain" and "ours", the median of their ratios, and the last results."""
    times, results = take_turns(ways, arguments.rounds, arguments.device)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return medians, median_ratio(times["plain"], times["ours"]), results


def compare_training(arguments):
    config = VlmoConfig(**SIZES[arguments.size], drop_path_rate=0.0, text_dropout=0.0)
    model = make_model(config, arguments.device).train()
    plain = PlainVlmo(model)
    batch, padded = make_batch(config, arguments.batch_size, arguments.device)
    losses = {"plain": plain.loss(padded).item(), "ours": model(**batch).loss.item()}
    difference = abs(losses["plain"] - losses["ours"])
    if difference > 1e-4:
        raise SystemExit(f"The two ways disagree: {losses}")
    # A rate of zero: every round starts from the same weights, and the work is the same.
    optimizers = {
        name: torch.optim.AdamW(list(one.parameters()), lr=0.0, fused=True)
        for name, one in (("plain", plain), ("ours", model))
    }

    def step(name, loss):
        optimizers[name].zero_grad()
        loss().backward()
        optimizers[name].step()

    ways = {
        "plain": lambda: step("plain", lambda: plain.loss(padded)),
        "ours": lambda: step("ours", lambda: model(**batch).loss),
    }
    seconds, ratio, _ = compare(ways, arguments)
    pairs = {name: arguments.batch_size / value for name, value in seconds.items()}
    peaks = {name: peak_memory(way, arguments.device) for name, way in ways.items()}
    print(
        f"| training step, {config.image_size} px, batch {arguments.batch_size} | {pairs['plain']:.3f} pairs/s | "
        f"{pairs['ours']:.3f} pairs/s | **{ratio:.2f}** | {peaks['plain']:.0f} MiB | {peaks['ours']:.0f} MiB | "
        f"{peaks['ours'] / peaks['plain']:.2f} | loss {difference:.1e} |",
        flush=True,
    )


@torch.no_grad()
def compare_large_pictures(arguments):
    config = VlmoConfig(**{**SIZES[arguments.size], "image_size": 480}, drop_path_rate=0.0, text_dropout=0.0)
    model = make_model(config, arguments.device).eval()
    plain = PlainVlmo(model)
    batch, padded = make_batch(config, arguments.large_batch_size, arguments.device)
    names = ("pixel_values", "input_ids", "attention_mask")
    ways = {
        "plain": lambda: plain.encode(*(padded[name] for name in names[:2]), padded["attention_mask"].bool()),
        "ours": lambda: model.vlmo(**{name: batch[name] for name in names}).last_hidden_state,
    }
    # Memory first: afterwards the allocator holds blocks of both.
    peaks = {name: peak_memory(way, arguments.device) for name, way in ways.items()}
    seconds, ratio, results = compare(ways, arguments)
    difference = (results["plain"][:, 0] - results["ours"][:, 0]).abs().max().item()
    pairs = {name: arguments.large_batch_size / value for name, value in seconds.items()}
    print(
        f"| forward, 480 px, batch {arguments.large_batch_size} | {pairs['plain']:.3f} pairs/s | "
        f"{pairs['ours']:.3f} pairs/s | **{ratio:.2f}** | {peaks['plain']:.0f} MiB | {peaks['ours']:.0f} MiB | "
        f"**{peaks['ours'] / peaks['plain']:.2f}** | T_CLS {difference:.1e} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch_size", type=int, default=4, help="of the training steps")
    parser.add_argument("--large_batch_size", type=int, default=1, help="of the forward passes at 480 pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(
        f"VLMo {arguments.size}, float32, {arguments.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {arguments.rounds} rounds; memory is beyond the weights"
    )
    columns = ["", "plain", "ours", "speed, ours/plain", "plain memory", "our memory", "memory, ours/plain"]
    print(f"| {' | '.join([*columns, 'largest difference'])} |\n|{'---|' * (len(columns) + 1)}")
    compare_large_pictures(arguments)
    compare_training(arguments)


if __name__ == "__main__":
    main()
