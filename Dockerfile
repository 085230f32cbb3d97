# The tools on a machine with an NVIDIA GPU and the container toolkit:
#
#   docker build -t pixels-to-recall .
#   docker run --gpus all --ipc=host -v $PWD/data:/data pixels-to-recall extract-features /data/coco/images
#
# gcc and the headers are for Triton, which compiles the start of a kernel when it is first needed.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        python3 python3-pip make git gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/pixels-to-recall
COPY . .
RUN make setup
ENV PATH=/opt/pixels-to-recall/.venv/bin:$PATH
CMD ["data-tools", "--help"]
