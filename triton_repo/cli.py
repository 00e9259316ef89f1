"""The ``diffgemma`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from nemo_diffgemma.entry import Stopped, enter, status_of_output, stoppable
from nemo_diffgemma.errors import FieldError
from triton_repo.client.options import CommandOptions, parse_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, with ``decide`` as first argument ask questions, or with ``bench`` measure a server.

    Returns:
        0; 1 when the server refuses or fails, or nobody reads the answer, 2 for a mistake here, 130 after Ctrl-C.
    """
    if arguments is None:
        enter()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["bench"]:
        from triton_repo.bench import command as bench

        return bench.main(given[1:]) or status_of_output(printed=True)
    if given[:1] == ["decide"]:
        from triton_repo.client import decide

        return decide.main(given[1:]) or status_of_output(printed=True)
    try:
        return _generate(parse_arguments(given))
    except FieldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _generate(options: CommandOptions) -> int:
    # gRPC takes longer to import than `--help` may take
    from triton_repo.client.blocking import BlockingClient
    from triton_repo.client.failures import GenerationError
    from triton_repo.client.terminal import show

    try:
        with (
            stoppable(),
            BlockingClient(options.url, tls=options.tls, retry=options.retry) as client,
            closing(client.generate(**options.inputs)) as responses,
        ):
            show(responses, options.output)
    except Stopped as stopped:
        # Leaving the block closed the stream, by which the server cancels.
        print("cancelled: the server was told to stop this generation", file=sys.stderr)
        return 128 + stopped.number
    except (FieldError, GenerationError) as error:
        print(f"error: {error}", file=sys.stderr)
        # A server that is not there is both, and most likely a mistake in --url.
        return 2 if isinstance(error, FieldError) else 1
    return status_of_output(printed=True)


if __name__ == "__main__":
    sys.exit(main())
