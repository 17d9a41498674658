"""``python -m vtc.cli``: the ``vtc`` command."""

from vtc.cli import main

main(prog_name="vtc")
