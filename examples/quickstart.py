"""Learn a map between two embedding spaces, read its verdict, and use it.

python examples/quickstart.py [--data FOLDER] [--rows N]
"""

import jax
import jax.numpy as jnp
from common import load_rows, make_parser

import mv2v_jax


def main(arguments: list[str] | None = None) -> float:
    """Fit, apply and evaluate; returns the top-1."""
    options = make_parser(__doc__).parse_args(arguments)
    # Or your own arrays: x [n, d_x] and y [m, d_y], float16 to float64, of different texts of the same kind.
    data = load_rows(options)

    # Two searches from different random draws. How far they agree is part of the verdict.
    restarts = mv2v_jax.align_restarts(jax.random.key(0), data.x, data.y, 2)
    result = restarts.best
    verdict = mv2v_jax.Verdict(int(result.verdict)).name
    print(f"verdict {verdict}, confidence {result.confidence:.2f}, estimated top-1 {result.estimated_top1:.2f}")

    # Unit rows without the mean of the target: compare them with each other.
    mapped = mv2v_jax.apply(result.map, data.x_eval)
    # Rows in the raw frame of the target: compare them with raw vectors of its encoder.
    raw = mv2v_jax.apply(result.map, data.x_eval, frame="target")
    # From the target back to the source.
    back = mv2v_jax.apply(mv2v_jax.invert(result.map), data.y_eval)
    print(f"mapped {mapped.shape}, in the raw frame {raw.shape}, back {back.shape}")

    # With true pairs you can measure what the verdict estimates.
    scores = mv2v_jax.evaluate(result.map, jnp.asarray(data.x_eval), jnp.asarray(data.y_eval))
    print(f"top-1 among {len(data.x_eval):,} texts: {scores.top1:.3f}")
    return float(scores.top1)


if __name__ == "__main__":
    main()
