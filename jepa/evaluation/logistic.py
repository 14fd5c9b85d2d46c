"""Multinomial logistic regression for several L2 penalties at once: one batched, preconditioned L-BFGS.

Letters: N samples, D features and one constant column for the intercept, R penalties, C classes. Coefficients
are (D + 1, R, C), so that all problems share the product `design @ coefficients.reshape(D + 1, R * C)`.

torch.optim.LBFGS on the summed loss has one step length and one history for all penalties, so the worst conditioned one
sets the pace, and converged ones are evaluated again. On 60,000 x 384 with 7 penalties it took 7 times as long and
stopped at higher losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ENTRIES = 2**22  # logits computed at a time: bounds the memory, whatever N, R and C are

_MAX_STEPS, _MAX_HALVINGS = 200, 10

_MEMORY = 10  # past steps that the Hessian is estimated from


def fit_logistic(
    design: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalties: Tensor,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Minimise, for each penalty, mean cross-entropy + penalty / 2 * |coefficients without intercept|^2.

    L-BFGS (Liu and Nocedal 1989) that starts from the Hessian of uniform class probabilities.

    design: (N, D + 1) float, features of comparable scale; the last column is all ones.
    labels: (N,) int64 in [0, classes).
    penalties: (R,), above 0.
    start: (D + 1, R, C) coefficients to start from; zeros by default.
    tolerance: a penalty has converged when its next step would lower its loss by less than this share.

    Return coefficients (D + 1, R, C).
    """
    shape = (design.shape[1], len(penalties), classes)
    solution = design.new_zeros(shape) if start is None else start.clone()
    hessian = _InverseHessian(design, penalties, classes)
    active = torch.arange(len(penalties), device=design.device)
    current, length = solution.clone(), torch.ones_like(penalties)
    loss, gradient = _loss_and_gradient(design, labels, current, penalties)

    for _ in range(_MAX_STEPS):
        step = -hessian.apply(gradient)
        slope = _dot(step, gradient)
        going = (-slope / 2 > tolerance * loss) & (length > 0)
        if not going.all():
            solution[:, active] = current
            if not going.any():
                return solution
            hessian.select(going)
            active, penalties, loss, slope = (v[going] for v in (active, penalties, loss, slope))
            current, gradient, step = (v[:, going] for v in (current, gradient, step))
        length, loss, new_gradient = _backtrack(design, labels, current, penalties, step, loss, slope)
        step = step * length[:, None]
        hessian.update(step, new_gradient - gradient)
        current, gradient = current + step, new_gradient
    solution[:, active] = current
    return solution


def _loss_and_gradient(
    design: Tensor, labels: Tensor, coefficients: Tensor, penalties: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the penalised losses (R,) and their gradients (D + 1, R, C)."""
    width, problems, classes = coefficients.shape
    flat = coefficients.reshape(width, problems * classes)
    loss, gradient = coefficients.new_zeros(problems), torch.zeros_like(flat)
    rows = max(1, _CHUNK_ENTRIES // (problems * classes))
    for x, y in zip(design.split(rows), labels.split(rows)):
        y = y[:, None, None].expand(-1, problems, 1)
        log_p = (x @ flat).view(len(x), problems, classes).log_softmax(dim=2)
        loss -= log_p.gather(2, y).sum(dim=(0, 2))
        # The gradient by the logits is probability minus one-hot label; autograd would keep several copies.
        error = log_p.exp_().scatter_add_(2, y, log_p.new_tensor(-1.0).expand_as(y))
        gradient.addmm_(x.T, error.view(len(x), problems * classes))
    penalised = coefficients.clone()
    penalised[-1] = 0  # the intercept is free
    loss = loss / len(design) + penalties / 2 * _dot(penalised, penalised)
    return loss, gradient.view_as(coefficients) / len(design) + penalties[:, None] * penalised


def _backtrack(
    design: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    penalties: Tensor,
    step: Tensor,
    loss: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve each step until the loss falls enough (Armijo); return step lengths (R,), losses and gradients.

    The losses are convex, so no curvature condition (Wolfe) is needed. Length 0: no step lowers the loss by more than
    rounding.
    """
    length = torch.ones_like(loss)
    rounding = 4 * torch.finfo(loss.dtype).eps * loss
    for _ in range(_MAX_HALVINGS):
        trial = coefficients + step * length[:, None]
        new_loss, new_gradient = _loss_and_gradient(design, labels, trial, penalties)
        too_long = new_loss > loss + 1e-4 * length * slope + rounding
        if not too_long.any():
            break
        length = torch.where(too_long, length / 2, length)
    return torch.where(too_long, 0.0, length), new_loss, new_gradient


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of a symmetric matrix.

    By SciPy in fp64 where torch fails, as it does for many equal eigenvalues: bags of words of which most never occur.
    """
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # of its divide and conquer; with some numbers of threads in fp64 too
        import scipy.linalg

        found = scipy.linalg.eigh(matrix.double().cpu().numpy(), driver="ev")
        return tuple(torch.from_numpy(each).to(matrix) for each in found)


class _InverseHessian:
    """L-BFGS's estimate of the inverse Hessian of each penalty's loss.

    It starts from (X^T X / (N C) + penalty)^-1 with X the design: exact at coefficients 0, up to the intercept's
    penalty and a common shift of all classes. It removes the correlation of features, which makes gradient methods
    slow.
    """

    def __init__(self, design: Tensor, penalties: Tensor, classes: int) -> None:
        # 8 samples per column estimate X^T X well enough: as many steps are taken as with all samples.
        sample = design[:: max(1, len(design) // (8 * design.shape[1]))]
        eigenvalues, self.basis = _eigh(sample.T @ sample / len(sample))
        self.prior = 1 / (eigenvalues.clamp(min=0)[:, None] / classes + penalties)  # (D + 1, R)
        self.past: list[tuple[Tensor, Tensor, Tensor]] = []  # step, gradient change, 1 / their product

    def update(self, step: Tensor, change: Tensor) -> None:
        """Add a step and the change of the gradient along it, unless rounding made their product negative."""
        product = _dot(step, change)
        self.past.append((step, change, torch.where(product > 0, 1 / product, 0.0)))
        self.past = self.past[-_MEMORY:]

    def select(self, problems: Tensor) -> None:
        """Keep only the penalties marked in (R,) bool."""
        self.prior = self.prior[:, problems]
        self.past = [(s[:, problems], c[:, problems], inverse[problems]) for s, c, inverse in self.past]

    def apply(self, gradient: Tensor) -> Tensor:
        """Return inverse Hessian times gradient, both (D + 1, R, C): the two-loop recursion."""
        result, shares = gradient, []
        for step, change, inverse in reversed(self.past):
            shares.append(inverse * _dot(step, result))
            result = result - shares[-1][:, None] * change
        result = self._apply_prior(result)
        if self.past:
            _, change, inverse = self.past[-1]
            scale = 1 / (inverse * _dot(change, self._apply_prior(change)))
            result = result * torch.where(inverse > 0, scale, 1.0)[:, None]
        for step, change, inverse in self.past:
            result = result + (shares.pop() - inverse * _dot(change, result))[:, None] * step
        return result

    def _apply_prior(self, vector: Tensor) -> Tensor:
        rotated = torch.tensordot(self.basis.T, vector, dims=1) * self.prior[:, :, None]
        return torch.tensordot(self.basis, rotated, dims=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products per penalty: two (D + 1, R, C) -> (R,)."""
    return (a * b).sum(dim=(0, 2))
