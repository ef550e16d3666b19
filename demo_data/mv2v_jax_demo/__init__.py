"""Demo data of mv2v_jax; `mv2v_jax.load_demo_data` reads it."""
