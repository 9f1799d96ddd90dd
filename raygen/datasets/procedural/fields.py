"""Arithmetic on fields, arrays with a value for each sample: distances, soft steps, bumps and colours."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["WHITE", "Colour", "Field", "bump", "clip", "ellipse", "mixed", "planes", "ramp", "rounded", "scaled"]


#: RGB in 0..1.
Colour = tuple[float, float, float]
Field = npt.NDArray[Any]

WHITE: Colour = (1.0, 1.0, 1.0)


def clip(x: Any, low: float, high: float) -> Field:
    """`np.clip` at half its cost for small arrays."""
    clipped: Field = np.minimum(np.maximum(x, low), high)
    return clipped


def ramp(low: float, high: float, x: Field) -> Field:
    """0 at `low`, 1 at `high`, smooth between; `low` may be the larger."""
    t: Field = np.asarray((x - low) * (1 / (high - low)))
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    rest = 3 - 2 * t
    t *= t
    t *= rest
    return t


def bump(x: Field, y: Field, a: float, b: float) -> Field:
    """A round bump of height 1: about a third at the radii `a`, `b`, and 0 from twice these radii."""
    across, along = x * (0.5 / a), y * (0.5 / b)
    r: Field = np.asarray(1 - (across * across + along * along))
    np.maximum(r, 0, out=r)
    r *= r
    r *= r
    return r


def ellipse(x: Field, y: Field, a: float, b: float) -> Field:
    """Distance to an ellipse, negative inside; exact on the edge only."""
    return (np.sqrt((x * (1 / a)) ** 2 + (y * (1 / b)) ** 2) - 1) * min(a, b)


def rounded(x: Field, y: Field, a: float | Field, b: float, r: float) -> Field:
    """Distance to a rectangle with rounded corners."""
    dx, dy = np.abs(x) - (a - r), np.abs(y) - (b - r)
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    distance: Field = outside + np.minimum(np.maximum(dx, dy), 0) - r
    return distance


def planes(colour: Colour | Field) -> Field:
    """A colour as [3, 1, 1], which broadcasts to fields of any size."""
    return np.asarray(colour, np.float32).reshape(3, 1, 1)


def scaled(colour: Colour, by: float) -> Colour:
    """The colour multiplied by a factor."""
    return (colour[0] * by, colour[1] * by, colour[2] * by)


def mixed(a: Colour, b: Colour, t: float) -> Colour:
    """Linear interpolation: `a` at 0, `b` at 1."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)
