"""Joint pre-training of VL-BEiT: the step, its masks and its visual tokens.

    python benchmarks/vl_beit.py [--size base] [--batch_size 2] [--rounds 3] [--device cpu]

1. Steps on pictures, texts and pairs together (forward, backward, AdamW), three ways on the same weights and batch;
   their losses must agree to 1e-4.
   plain: three passes, logits for every position, texts padded to 40 tokens.
   packed: all three sources as rows of one pass, missing sides masked out, so that attention runs once per block.
   ours: three passes, logits of hidden positions, texts padded to the longest.
2. Block-wise masks of 14 x 14 patches: plain, a NumPy array that blocks are counted and marked in; ours, one number
   with a bit for each patch.
3. Visual tokens of pictures: the VQ-KD encoder of base size, beside ids read from the Arrow cache.

All ways take turns within a round; ratios are medians of the rounds' ratios.
"""

import argparse
import math
import random
import statistics
import tempfile

import numpy as np
import torch
from PIL import Image
from timing import median_ratio, peak_memory, take_turns
from torch.nn import functional as F

from hf_vlp import VlBeitConfig, VlBeitForPreTraining, VlBeitVqkdConfig, VlBeitVqkdTokenizer
from hf_vlp.data.patch_masks import draw_block_mask
from hf_vlp.data.visual_tokens import add_visual_tokens
from hf_vlp.models.mome.configuration_vl_beit import VL_BEIT_SIZES
from hf_vlp.models.mome.mome import make_image_position_index, make_pair_position_index, make_text_position_index

TEXT_LENGTH = 40
TINY = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vl_expert_start_layer": 2,
    "visual_vocab_size": 512,
}
SIZES = {**VL_BEIT_SIZES, "tiny": TINY}
SOURCES = ("", "text_", "image_")


def make_model(config: VlBeitConfig, device: str) -> VlBeitForPreTraining:
    """Random weights far from their initial values, whose small scales and zero bias would hide a wrong result."""
    torch.manual_seed(0)
    model = VlBeitForPreTraining(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 0.5 if name.endswith(("position_bias_table", "_scale")) and parameter.ndim else 0.02
            parameter.add_(std * torch.randn_like(parameter))
    return model.to(device).train()


def make_batch(config: VlBeitConfig, batch_size: int, device: str) -> tuple[dict, dict]:
    """Pairs, texts and pictures with texts padded to the longest, and the same padded to 40 tokens."""
    generator, masks = torch.Generator().manual_seed(0), random.Random(0)
    window = config.window_size
    batch = {}
    for prefix, share in zip(SOURCES, (0.5, 0.15, None)):
        if share is not None:
            lengths = torch.randint(8, 17, (batch_size, 1), generator=generator)
            ids = torch.randint(1000, config.vocab_size, (batch_size, TEXT_LENGTH), generator=generator)
            mask = (torch.arange(TEXT_LENGTH) < lengths).long()
            hidden = (torch.rand(ids.shape, generator=generator) < share) & mask.bool()
            hidden[:, 1] = True
            ids = ids * mask
            batch |= {f"{prefix}labels": ids.masked_fill(~hidden, -100), f"{prefix}attention_mask": mask}
            batch[f"{prefix}input_ids"] = ids.masked_fill(hidden, 103)
        if prefix != "text_":
            size, num_patches = config.image_size, window**2
            batch[f"{prefix}pixel_values"] = torch.randn(batch_size, 3, size, size, generator=generator)
            batch[f"{prefix}bool_masked_pos"] = torch.stack(
                [draw_block_mask(window, window, math.floor(0.4 * num_patches), masks) for _ in range(batch_size)]
            )
            batch[f"{prefix}visual_token_ids"] = torch.randint(
                config.visual_vocab_size, (batch_size, num_patches), generator=generator
            )
    padded = {name: value.to(device) for name, value in batch.items()}
    longest = {prefix: int(batch[f"{prefix}attention_mask"].sum(1).max()) for prefix in SOURCES[:2]}
    cut = {
        f"{prefix}{name}": length
        for prefix, length in longest.items()
        for name in ("input_ids", "attention_mask", "labels")
    }
    return {name: value[:, : cut.get(name, value.shape[1])] for name, value in padded.items()}, padded


def sum_of_losses(model: VlBeitForPreTraining, batch: dict, text: dict, image: dict) -> torch.Tensor:
    """The four terms from the states of texts and patches (`""` of pairs), with logits for every position."""
    total = 0.0
    for prefix, states in text.items():
        logits = model.mlm_head(states)
        total = total + F.cross_entropy(logits.flatten(0, 1), batch[f"{prefix}labels"].flatten(), ignore_index=-100)
    for prefix, states in image.items():
        logits = model.mim_head(states)
        targets = batch[f"{prefix}visual_token_ids"].masked_fill(~batch[f"{prefix}bool_masked_pos"], -100)
        total = total + F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    return total


def embed_pictures(model: VlBeitForPreTraining, batch: dict, prefix: str) -> torch.Tensor:
    return model.vl_beit.image_embeddings(
        batch[f"{prefix}pixel_values"], batch[f"{prefix}bool_masked_pos"], model.mask_token
    )


def plain_loss(model: VlBeitForPreTraining, batch: dict) -> torch.Tensor:
    """Three passes, logits for every position."""
    texts = {
        prefix: {"input_ids": batch[f"{prefix}input_ids"], "attention_mask": batch[f"{prefix}attention_mask"]}
        for prefix in SOURCES[:2]
    }
    pairs = model.vl_beit(**texts[""], image_embeds=embed_pictures(model, batch, ""))
    alone = model.vl_beit(**texts["text_"])
    pictures = model.vl_beit(image_embeds=embed_pictures(model, batch, "image_"))
    return sum_of_losses(
        model,
        batch,
        text={"": pairs.text_hidden_state, "text_": alone.text_hidden_state},
        image={"": pairs.image_hidden_state[:, 1:], "image_": pictures.image_hidden_state[:, 1:]},
    )


def packed_loss(model: VlBeitForPreTraining, batch: dict) -> torch.Tensor:
    """One pass over rows [text ; picture]: pairs, texts without a picture, pictures without a text."""
    base, config = model.vl_beit, model.config
    length = max(batch["input_ids"].shape[1], batch["text_input_ids"].shape[1])
    rows, device = len(batch["input_ids"]), batch["input_ids"].device

    def widen(tensor):
        return F.pad(tensor, (0, length - tensor.shape[1]))

    text = base.embed_text(torch.cat([widen(batch["input_ids"]), widen(batch["text_input_ids"])]))
    image = base.embed_image(
        image_embeds=torch.cat([embed_pictures(model, batch, prefix) for prefix in ("", "image_")])
    )
    num_image = image.shape[1]
    hidden = torch.cat(
        (
            torch.cat((text[:rows], image[:rows]), dim=1),
            F.pad(text[rows:], (0, 0, 0, num_image)),
            F.pad(image[rows:], (0, 0, length, 0)),
        )
    )
    seen = torch.ones(rows, num_image, dtype=torch.bool, device=device)
    nothing = torch.zeros(rows, length, dtype=torch.bool, device=device)
    mask = torch.cat(
        (
            torch.cat((widen(batch["attention_mask"]).bool(), seen), dim=1),
            torch.cat((widen(batch["text_attention_mask"]).bool(), ~seen), dim=1),
            torch.cat((nothing, seen), dim=1),
        )
    )
    window, table_length = config.window_size, config.max_text_length_of_table
    index = make_pair_position_index(
        make_text_position_index(length, window, table_length, device),
        make_image_position_index(window, device),
        window,
    )
    mask = torch.zeros(mask.shape, device=device).masked_fill(~mask, torch.finfo(torch.float32).min)
    mask = mask[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
    for layer in base.layers:
        update, _ = layer.attention(layer.attention_norm(hidden), index, mask)
        hidden = hidden + scaled(update, layer.attention_scale)
        pairs, texts, pictures = hidden.split(rows)
        texts = texts[:, :length] + scaled(layer.experts["text"](texts[:, :length]), layer.expert_scale)
        pictures = pictures[:, length:] + scaled(layer.experts["image"](pictures[:, length:]), layer.expert_scale)
        if "vl" in layer.experts:
            update = layer.experts["vl"](pairs)
        else:
            update = torch.cat(
                (layer.experts["text"](pairs[:, :length]), layer.experts["image"](pairs[:, length:])), dim=1
            )
        pairs = pairs + scaled(update, layer.expert_scale)
        hidden = torch.cat((pairs, F.pad(texts, (0, 0, 0, num_image)), F.pad(pictures, (0, 0, length, 0))))
    pairs, texts, pictures = base.norm(hidden).split(rows)
    return sum_of_losses(
        model,
        {
            **batch,
            "labels": pad_labels(batch["labels"], length),
            "text_labels": pad_labels(batch["text_labels"], length),
        },
        text={"": pairs[:, :length], "text_": texts[:, :length]},
        image={"": pairs[:, length + 1 :], "image_": pictures[:, length + 1 :]},
    )


def scaled(update: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return update if scale is None else scale * update


def pad_labels(labels: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(labels, (0, length - labels.shape[1]), value=-100)


def compare_steps(arguments):
    config = VlBeitConfig(**SIZES[arguments.size], drop_path_rate=0.0, text_dropout=0.0)
    model = make_model(config, arguments.device)
    batch, padded = make_batch(config, arguments.batch_size, arguments.device)
    ways = {
        "plain": lambda: plain_loss(model, padded),
        "packed": lambda: packed_loss(model, batch),
        "ours": lambda: model(**batch).loss,
    }
    losses = {name: way().item() for name, way in ways.items()}
    difference = max(losses.values()) - min(losses.values())
    if difference > 1e-4:
        raise SystemExit(f"The ways disagree: {losses}")
    # A rate of zero: every round starts from the same weights, and the work is the same.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step(loss):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    steps = {name: lambda way=way: step(way) for name, way in ways.items()}
    times, _ = take_turns(steps, arguments.rounds, arguments.device)
    # Memory last: the first step makes the optimizer's state, which is no way's own.
    peaks = {name: peak_memory(one, arguments.device) for name, one in steps.items()}
    print(f"\nStep of {arguments.batch_size} pictures, texts and pairs each; losses differ by {difference:.1e}.\n")
    print("| way | samples/s | speed, ours to it | memory beyond weights |\n|---|---|---|---|")
    for name, seconds in times.items():
        samples = 3 * arguments.batch_size / statistics.median(seconds)
        print(f"| {name} | {samples:.3f} | {median_ratio(seconds, times['ours']):.2f} | {peaks[name]:.0f} MiB |")


def draw_plainly(side: int, num_masked: int, generator: random.Random, min_area: int = 16) -> np.ndarray:
    """BEiT's rule on an array, brought to the exact count as in BEiT v2."""
    mask, count, log_aspect = np.zeros((side, side), dtype=bool), 0, -math.log(0.3)
    while count < num_masked:
        for _ in range(10):
            area = generator.uniform(min_area, num_masked - count)
            aspect = math.exp(generator.uniform(-log_aspect, log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = generator.randint(0, side - height), generator.randint(0, side - width)
            block = mask[top : top + height, left : left + width]
            new = block.size - int(block.sum())
            if 0 < new <= num_masked - count:
                block[:] = True
                count += new
                break
        else:
            break
    free = np.flatnonzero(~mask)
    mask.flat[generator.sample(free.tolist(), num_masked - count)] = True
    return mask


def compare_masks(arguments):
    number, side = 2000, 14
    ways = {
        "plain": lambda: [draw_plainly(side, 78, one) for one in [random.Random(0)] for _ in range(number)],
        "ours": lambda: [draw_block_mask(side, side, 78, one) for one in [random.Random(0)] for _ in range(number)],
    }
    times, results = take_turns(ways, arguments.rounds)
    counts = {name: {int(mask.sum()) for mask in masks} for name, masks in results.items()}
    rates = {name: number / statistics.median(seconds) for name, seconds in times.items()}
    print(
        f"\nMasks of {side} x {side} patches, {counts['ours']} hidden in each: plain {rates['plain']:,.0f}/s, ours "
        f"{rates['ours']:,.0f}/s, ratio **{median_ratio(times['plain'], times['ours']):.2f}**"
    )


def compare_visual_tokens(arguments):
    import datasets

    sizes = {} if arguments.size != "tiny" else {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = VlBeitVqkdTokenizer(VlBeitVqkdConfig(**sizes)).to(arguments.device).eval()
    side, number = tokenizer.config.image_size, 4 * arguments.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    pixel_values = torch.from_numpy(noise).permute(0, 3, 1, 2).to(arguments.device) / 255
    records = datasets.Dataset.from_list([{"image": Image.fromarray(one)} for one in noise])
    with tempfile.TemporaryDirectory() as folder:
        cached = add_visual_tokens(records, tokenizer, cache_dir=folder).with_format("torch")
        ways = {
            "encoder": lambda: tokenizer.get_token_ids(pixel_values).cpu(),
            "cache": lambda: cached["visual_token_ids"][:],
        }
        times, results = take_turns(ways, arguments.rounds, arguments.device)
    if not torch.equal(results["encoder"], results["cache"]):
        raise SystemExit("The cache holds other tokens than the encoder gives.")
    rates = {name: number / statistics.median(seconds) for name, seconds in times.items()}
    print(
        f"\nVisual tokens of {number} pictures of {side} pixels: encoder {rates['encoder']:,.2f}/s, cache "
        f"{rates['cache']:,.0f}/s, ratio **{median_ratio(times['encoder'], times['cache']):,.0f}**"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch_size", type=int, default=2, help="pictures, texts and pairs of a step, each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(
        f"VL-BEiT {arguments.size}, float32, {arguments.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {arguments.rounds} rounds"
    )
    compare_steps(arguments)
    compare_masks(arguments)
    compare_visual_tokens(arguments)


if __name__ == "__main__":
    main()
