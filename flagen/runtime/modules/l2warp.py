"""RWKV's penalty on the largest logit, which keeps logits small (Peng et al. 2023, https://arxiv.org/abs/2305.13048)."""

from torch import Tensor

from .precision import upcast


def largest_logit_penalty(logits: Tensor, factor: float) -> Tensor:
    """A scalar zero whose gradient at the largest of each row's logits is `factor` times that logit.

    Args:
        logits: [..., V].
        factor: of the gradient.
    """
    penalty = (0.5 * factor) * upcast(logits.max(dim=-1).values).square().sum()
    return penalty - penalty.detach()


def l2_warp(loss: Tensor, logits: Tensor, l2_penalty_factor: float = 1e-4) -> Tensor:
    """The loss as it is; the gradient of each token's largest logit gets l2_penalty_factor / (B T) of that logit more.

    Args:
        loss: a scalar.
        logits: [B, T, V].
        l2_penalty_factor: how strong the penalty is.

    Returns:
        The loss, in the dtype it came in.
    """
    tokens = logits.shape[0] * logits.shape[1]
    return loss + largest_logit_penalty(logits, l2_penalty_factor / tokens).to(loss.dtype)


class L2Wrap:
    """l2_warp under the name it has as an autograd function: `L2Wrap.apply`."""

    @staticmethod
    def apply(loss: Tensor, logits: Tensor, l2_penalty_factor: float = 1e-4) -> Tensor:
        """See l2_warp."""
        return l2_warp(loss, logits, l2_penalty_factor)


__all__ = ["L2Wrap", "l2_warp"]
