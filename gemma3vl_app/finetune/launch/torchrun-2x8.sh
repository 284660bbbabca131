#!/bin/sh
# The same by torchrun, for clusters that start one command on each machine. Not measured.
#   HEAD=address-of-the-first-machine sh torchrun-2x8.sh 27b-sft data=photos
# One machine: torchrun --standalone --nproc-per-node 8 -m gemma3vl_app.cli finetune 4b-lora ...
exec torchrun \
  --nnodes 2 --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:?set it to the address of the first machine}:29500" \
  -m gemma3vl_app.cli finetune "$@"
