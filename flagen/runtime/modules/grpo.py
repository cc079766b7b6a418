"""Group relative policy optimization. Shao et al. 2024, https://arxiv.org/abs/2402.03300."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked import loss_of_logits


def kl_penalty(ref_logp: Tensor, logp: Tensor) -> Tensor:
    """exp(ref - logp) - (ref - logp) - 1: what the divergence from the reference is estimated by."""
    difference = ref_logp - logp
    return difference.exp() - difference - 1


def fused_grpo_loss(
    logits: Tensor,
    ref_logp: Tensor,
    input_ids: Tensor,
    advantages: Tensor,
    beta: float = 0.1,
    completion_mask: Tensor | None = None,
    save_kl: bool = False,
    inplace: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The loss of each token of the completions: beta * kl_penalty - exp(logp - logp held fixed) * advantage.

    Args:
        logits: [B, L + 1, V]; those of the last token are not used.
        ref_logp: [B, L], the log probabilities of the tokens under the reference.
        input_ids: [B, P + L], prompts and completions.
        advantages: [B].
        beta: the weight of the divergence from the reference.
        completion_mask: [B, L], zero where a token costs nothing.
        save_kl: whether the divergence is returned too.
        inplace: whether the backward pass overwrites logits with their gradient.

    Returns:
        [B, L] in float32 (float64 for float64); with save_kl, that and the divergence, [B, L].

    Raises:
        ValueError: shapes do not fit.
    """
    batch, length = logits.shape[0], logits.shape[1] - 1
    for name, tensor in (("ref_logp", ref_logp), ("completion_mask", completion_mask)):
        if tensor is not None and tuple(tensor.shape) != (batch, length):
            raise ValueError(f"{name}: expected [B, L] = [{batch}, {length}], got {list(tensor.shape)}")
    if input_ids.shape[0] != batch or input_ids.shape[1] < length:
        raise ValueError(f"input_ids: expected [{batch}, {length} or more], got {list(input_ids.shape)}")
    if tuple(advantages.shape) != (batch,):
        raise ValueError(f"advantages: expected [B] = [{batch}], got {list(advantages.shape)}")
    shown = torch.ones_like(ref_logp, dtype=torch.bool) if completion_mask is None else completion_mask.bool()
    # One more token a sequence, which is hidden, so that the rows of logits can be taken as they lie.
    hidden = ~F.pad(shown, (0, 1)).flatten()
    reference = F.pad(ref_logp, (0, 1)).flatten()
    tokens = F.pad(input_ids[:, input_ids.shape[1] - length :], (0, 1)).flatten().long()
    gains = advantages[:, None].expand(-1, length + 1).flatten()

    def row_losses(chunk: Tensor, rows: slice) -> Tensor:
        logp = -F.cross_entropy(chunk, tokens[rows], reduction="none")
        kl = kl_penalty(reference[rows], logp)
        loss = beta * kl - (logp - logp.detach()).exp() * gains[rows]
        return torch.where(hidden[rows], 0.0, torch.stack([loss, kl]))

    both = loss_of_logits(logits.flatten(0, 1), row_losses, inplace, hidden)
    loss, kl = both.unflatten(-1, (batch, length + 1))[..., :-1].unbind(0)  # type: ignore[no-untyped-call]
    return (loss, kl) if save_kl else loss


def grpo_loss_with_old_logps(
    logps: Tensor,
    ref_logps: Tensor,
    old_logps: Tensor,
    pad_mask: Tensor,
    logits_to_keep: int,
    rewards: Tensor,
    beta: float = 0.2,
    epsilon: float = 0.2,
) -> Tensor:
    """The clipped loss of a policy that has moved since it sampled, the mean over the tokens that count.

    Args:
        logps: [B, T], the log probabilities of the tokens.
        ref_logps: [B, T], those under the reference.
        old_logps: [B, T], those when they were sampled.
        pad_mask: [B, T], true where a token counts.
        logits_to_keep: T.
        rewards: [B], which are centred and scaled.
        beta: the weight of the divergence from the reference.
        epsilon: how far from one the ratio of probabilities still counts.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not fit, or there is one completion only.
    """
    if logps.shape[0] < 2:
        raise ValueError(f"logps: expected two completions at least, for rewards are relative, got {logps.shape[0]}")
    if logits_to_keep != logps.shape[1]:
        raise ValueError(f"logits_to_keep: expected T = {logps.shape[1]}, got {logits_to_keep}")
    if rewards.numel() != logps.shape[0]:
        raise ValueError(f"rewards: expected [B] = [{logps.shape[0]}], got {list(rewards.shape)}")
    rewards = rewards.flatten()
    advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-8))[:, None]
    ratio = (logps - old_logps).exp()
    gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - epsilon, 1 + epsilon))
    counted = pad_mask.bool()
    return -((gain - beta * kl_penalty(ref_logps, logps)) * counted).sum() / counted.sum()


__all__ = ["fused_grpo_loss", "grpo_loss_with_old_logps"]
