"""The quality of whole fits on the bundled data stays within the bands of 12 seeds, so that no change costs some.

Measured were seeds 0 to 11: top-1 from 0.689 to 0.706, with a standard deviation of 0.005; FOSCTTM from 0.0030 to
0.0036.
"""

import jax
import pytest

from mv2v_jax import Config, align, evaluate, load_demo_data


@pytest.mark.slow
def test_top1_and_foscttm_of_one_search():
    data = load_demo_data()
    # Without the second search, which this data does not need, it compiles in half the time.
    config = Config.fast().replace(components={"num_runs": 0})
    found = [
        evaluate(align(jax.random.key(seed), data.x, data.y, config).map, data.x_eval, data.y_eval) for seed in range(2)
    ]
    # Five standard deviations on either side of the mean: a better method must move the band, too.
    assert all(0.673 < float(scores.top1) < 0.723 for scores in found)
    assert all(float(scores.foscttm) < 0.0045 for scores in found)
