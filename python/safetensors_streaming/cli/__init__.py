"""The command `safetensors-streaming`, also `python -m safetensors_streaming`.

It leaves with 0 if all is well, 1 if a checkpoint is not what it should be, 2 for a wrong command
line, 3 if the machine refused (a file that cannot be read, no memory, no such GPU), 130 if it was
interrupted, 141 if nobody reads any more what it prints, as a program that SIGPIPE ends.
"""

import click

from safetensors_streaming import __version__
from safetensors_streaming.cli.bench import bench
from safetensors_streaming.cli.doctor import doctor
from safetensors_streaming.cli.inspect import inspect
from safetensors_streaming.cli.load import load
from safetensors_streaming.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="safetensors-streaming")
def main() -> None:
    """Look at, check and load .safetensors checkpoints.

    PATH is a file, a folder, a model.safetensors.index.json, or a glob pattern.

    Exit codes: 0 all is well; 1 the checkpoint is not what it should be; 2 a wrong command line;
    3 the machine refused; 130 interrupted; 141 nobody reads the output any more.
    """


for _command in (inspect, verify, load, doctor, bench):
    main.add_command(_command)
