"""The commands on files: weights and corpora."""

from __future__ import annotations

import click

from harness.cli.options import DATA, EQUIVALENT, JSON, MODEL, TOKENS, example, print_json


@click.group("weights")
def weights_group() -> None:
    """Make, inspect, check and convert files of weights (.npz or .safetensors)."""


@weights_group.command(
    "init",
    epilog=example("harness weights init params.npz --model zaremba-small --seed 1"),
)
@click.argument("file")
@MODEL
@DATA
@TOKENS
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**62 - 1))
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
def weights_init(
    file: str,
    model: str | None,
    data: str | None,
    tokens: str,
    seed: int,
    settings: tuple[str, ...],
) -> int:
    """Draw weights for a model over a corpus's vocabulary and save them."""
    from harness.data import weights
    from harness.runs.prepare import model_for

    spec = model_for(model, data, tokens, settings)
    drawn = weights.draw(spec, seed)
    weights.save(drawn, file)
    count = sum(array.size for array in drawn.values())
    click.echo(f"{file}: {count:,} parameters drawn from seed {seed}, U(+-{spec.init_scale:g})")
    return EQUIVALENT


@weights_group.command("show", epilog=example("harness weights show params.npz"))
@click.argument("file")
@JSON
def weights_show(file: str, as_json: bool) -> int:
    """List the arrays of a file: name, shape, dtype, range."""
    from harness.data import weights
    from harness.report import terminal

    arrays = weights.read_arrays(file)
    if as_json:
        print_json({name: {"shape": a.shape, "dtype": str(a.dtype)} for name, a in arrays.items()})
    else:
        terminal.show_arrays(terminal.console(), arrays)
    return EQUIVALENT


@weights_group.command(
    "check",
    epilog=example("harness weights check params.npz --model zaremba-small --data ptb/"),
)
@click.argument("file")
@MODEL
@DATA
@TOKENS
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
@JSON
def weights_check(
    file: str,
    model: str | None,
    data: str | None,
    tokens: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check that a file holds the weights of a model: names, shapes, finite numbers.

    Without --model, --data and --set: of any model that is consistent in itself.
    """
    from harness.data import weights
    from harness.runs.prepare import model_for

    expected = model_for(model, data, tokens, settings) if model or data or settings else None
    weights.load(file, expected)
    sizes = weights.describe_model(file)
    if as_json:
        print_json(sizes)
        return EQUIVALENT
    click.echo(
        f"{file}: sound; vocabulary {sizes.vocab_size}, embedding {sizes.embed_size}, "
        f"{sizes.num_layers} layers of {sizes.hidden_size}"
    )
    return EQUIVALENT


@weights_group.command(
    "convert",
    epilog=example("harness weights convert params.npz torch.npz --to torch"),
)
@click.argument("source")
@click.argument("target")
@click.option("--to", required=True, help="canonical, original, torch, keras or tf1.")
@click.option("--from", "layout", help="Layout of SOURCE. [default: recognised by its names]")
def weights_convert(source: str, target: str, to: str, layout: str | None) -> int:
    """Rewrite weights in the layout of another program: names, axes, gate order, biases."""
    from harness.data import weights

    written = weights.convert(source, target, to, layout)
    click.echo(f"{target}: {len(written)} arrays in layout {to}")
    return EQUIVALENT


@click.command("corpus", epilog=example("harness corpus --data ptb/"))
@DATA
@TOKENS
@JSON
def corpus_command(data: str | None, tokens: str, as_json: bool) -> int:
    """Say what a corpus holds, and of the built-in one its exact entropy."""
    from harness.data import corpus as corpora

    corpus = corpora.load(data, tokens)
    if as_json:
        sizes = {name: len(getattr(corpus, name)) for name in corpora.SPLITS}
        known = {"vocabulary": len(corpus.vocabulary), "entropy": corpus.entropy}
        print_json({"name": corpus.name, **sizes, **known})
    else:
        click.echo(corpora.describe(corpus))
    return EQUIVALENT
