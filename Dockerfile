# Microplane on a CPU:  docker build -t microplane .
#   docker run --rm -v "$PWD:/work" -v microplane-cache:/cache microplane train smollm2 commands.jsonl
FROM python:3.12-slim

# the compiler makes the fast operations for the processor at hand when they are first needed
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libgomp1 \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY examples/home_commands examples/home_commands
COPY src src
# torch's build for CPUs is several GB smaller: give the index that its site names, --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt '.[compare,parquet]'

ENV MICROPLANE_CACHE=/cache
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["microplane"]
CMD ["--help"]
