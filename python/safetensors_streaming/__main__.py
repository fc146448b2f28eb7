"""`python -m safetensors_streaming`."""

from safetensors_streaming.cli import main

main(prog_name="safetensors-streaming")
