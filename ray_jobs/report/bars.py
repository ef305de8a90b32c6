"""Small bars in tables: a difference and its interval about zero, as inline SVG in the page's colours."""

from markupsafe import Markup

WIDTH, HEIGHT = 120, 16  # pixels


def difference_bar(value: float, low: float, high: float, scale: float, *, good: bool) -> Markup:
    """An interval as a line, its value as a dot, zero as a mark; what is beyond the scale ends at its edge.

    Args:
        value, low, high: the difference and its ends.
        scale: the largest difference that has room, of either sign.
        good: drawn in the colour of what is better.
    """

    def x(at: float) -> float:
        return WIDTH / 2 + max(-1.0, min(1.0, at / scale)) * (WIDTH / 2 - 5)

    middle = HEIGHT // 2
    return Markup(
        '<svg class="bar{}" width="{}" height="{}" viewBox="0 0 {} {}" aria-hidden="true">'
        '<path class="zero" d="M{} 1V{}"/><path d="M{:.1f} {}H{:.1f}"/><circle cx="{:.1f}" cy="{}" r="4"/></svg>'
    ).format(
        " good" if good else "", WIDTH, HEIGHT, WIDTH, HEIGHT,
        WIDTH // 2, HEIGHT - 1, x(low), middle, max(x(high), x(low) + 0.5), x(value), middle,
    )  # fmt: skip
