"""Shares and their intervals, against values worked out by hand and against the definition."""

import math

import pytest

from lora_cot.evaluation.metrics import Share


@pytest.mark.parametrize(
    ("correct", "total", "interval"),
    [
        (0, 10, (0.0, 0.27753)),  # 0 and z²/(n + z²)
        (10, 10, (0.72247, 1.0)),
        (0, 1, (0.0, 0.79346)),
        (1, 1, (0.20654, 1.0)),
        (8, 10, (0.49016, 0.94332)),
        (50, 100, (0.40383, 0.59617)),
        (81, 263, (0.25527, 0.36621)),  # Newcombe 1998, table I: 0.2553 to 0.3662
        (15, 148, (0.06239, 0.16049)),  # Newcombe 1998, table I: 0.0624 to 0.1605
    ],
)
def test_known_intervals(correct, total, interval):
    """Wilson's interval to four places, at the extremes too."""
    assert Share(correct, total).interval == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("total", [1, 2, 7, 500])
def test_the_bounds_solve_wilsons_equation(total):
    """A bound b is where the share is 1.96 standard errors of b away; bounds stay within 0 and 1 and hold the share."""
    for correct in range(total + 1):
        share = Share(correct, total)
        low, high = share.interval
        assert 0 <= low <= share.value + 1e-12 and share.value - 1e-12 <= high <= 1
        for bound in (low, high):
            error = 1.959964 * math.sqrt(max(bound * (1 - bound), 0) / total)
            assert abs(share.value - bound) == pytest.approx(error, abs=1e-6)


def test_credits_in_parts_have_the_bootstraps_interval():
    """A mean that does not vary has no width, one that does is as wide as the normal one; whole credits have Wilson's."""
    assert Share.of([0.5] * 100).interval == (0.5, 0.5)
    low, high = Share.of([0.25, 0.75] * 50).interval
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)
    assert Share.of([0.5]).interval == (0.0, 1.0)
    assert Share.of([1.0, 0.0] * 50) == Share(50, 100)


def test_no_questions():
    """Nothing of nothing is 0, and it could be anything."""
    assert (Share(0, 0).value, Share(0, 0).interval, str(Share(0, 0))) == (0.0, (0.0, 1.0), "0.0% [0.0%, 100.0%] of 0")


def test_a_share_as_text_and_as_json():
    """People and programs are given the share with its interval and its count."""
    share = Share(8, 10)
    assert str(share) == "80.0% [49.0%, 94.3%] of 10"
    assert share.to_json() == {"correct": 8, "total": 10, "accuracy": 0.8, "interval": share.interval}
