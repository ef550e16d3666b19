# mv2v on an NVIDIA GPU; docs/devices.md shows how to run it. CUDA comes with jax[cuda12]. Python and packages are those
# that CI tests with.
FROM python:3.11.13-slim-bookworm

WORKDIR /opt/mv2v_jax
COPY pyproject.toml README.md LICENSE ./
COPY mv2v_jax ./mv2v_jax
COPY demo_data ./demo_data
COPY .ci/constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt ".[cli,tables]" "jax[cuda12]" ./demo_data

# What is compiled is kept here; mount a folder to keep it between runs. Any user may write to it.
ENV MV2V_COMPILATION_CACHE=/var/cache/mv2v_jax
RUN mkdir --mode=1777 "$MV2V_COMPILATION_CACHE"

# Files that it writes belong to this user unless --user names another.
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["mv2v"]
CMD ["--help"]
