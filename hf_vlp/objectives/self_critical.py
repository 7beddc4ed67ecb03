"""Self-critical sequence training: reward a sampled text by how much it beats a baseline.

Rennie et al., 2017 (arXiv 1612.00563). VC-GPT's paper does not say whether it used it; the standard form is offered.
"""

import torch


def self_critical_loss(
    log_probs: torch.Tensor,
    mask: torch.Tensor,
    sample_rewards: torch.Tensor,
    greedy_rewards: torch.Tensor,
) -> torch.Tensor:
    """Policy gradient with a baseline, averaged over the generated tokens.

    Formula:
        L = - sum_{b,t} (r_b - baseline_b) log p(y_bt) mask_bt / sum_{b,t} mask_bt

    Inputs:
        log_probs: (rows, length), log-probability of each sampled token, with gradient.
        mask: (rows, length), 1 on the sampled tokens **including the end token** and 0 behind it.
        sample_rewards: (rows,), reward of the sampled text, without gradient.
        greedy_rewards: (rows,), reward of the baseline: the greedy text, or the mean of the other samples.

    Returns a scalar. Raises ValueError for shapes that do not fit and for a mask without a single token.

    References:
        Rennie et al., 2017, equations 7 and 8; Luo, 2020 (arXiv 2003.09971) for the mean of the other samples.

    Notes:
        Rewards are used as they are: no whitening, so that the learning rate keeps its meaning. A reward that does not
        count the end token as a word lets the model earn by leaving sentences unfinished.
    """
    if log_probs.ndim != 2 or mask.shape != log_probs.shape:
        raise ValueError(
            f"log_probs and mask must have the same shape (rows, length), not {tuple(log_probs.shape)} and "
            f"{tuple(mask.shape)}."
        )
    for name, rewards in (("sample_rewards", sample_rewards), ("greedy_rewards", greedy_rewards)):
        if rewards.shape != log_probs.shape[:1]:
            raise ValueError(
                f"{name} must have the shape ({len(log_probs)},), one per row, not {tuple(rewards.shape)}."
            )
    mask = mask.to(log_probs.dtype)
    num_tokens = mask.sum()
    if num_tokens == 0:
        raise ValueError("The mask holds no token: every row must keep at least its end token.")
    advantages = (sample_rewards - greedy_rewards).detach().to(log_probs)
    # Masked positions may hold -inf, and 0 * -inf is not a number.
    log_probs = log_probs.masked_fill(mask == 0, 0.0)
    return -(advantages.unsqueeze(1) * log_probs * mask).sum() / num_tokens


def mean_of_others(sample_rewards: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Baseline of each sample: the mean reward of the other samples of its picture.

    Inputs:
        sample_rewards: (pictures * num_samples,), the samples of a picture behind one another.
        num_samples: at least 2.

    Returns the baseline, of the same shape.
    """
    if num_samples < 2:
        raise ValueError(f"The mean of the other samples needs at least 2 samples per picture, not {num_samples}.")
    rewards = sample_rewards.view(-1, num_samples)
    return ((rewards.sum(1, keepdim=True) - rewards) / (num_samples - 1)).flatten()


__all__ = ["mean_of_others", "self_critical_loss"]
