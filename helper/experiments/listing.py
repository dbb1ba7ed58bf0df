"""The experiments as reproduce.py --list prints them: every value with its source."""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from dataset import dataset_dict
from distiller_zoo import distiller_dict

from ..settings import PLACE, declared, defaults
from ..student.pairs import pair_settings
from .catalogue import FIGURES, TABLES, Table, networks
from .plan import OPTIONS_OF


def describe() -> str:
    """All tables, figures, methods and settings as text, with the source of every value in brackets."""
    sections = [describe_table(name, table) for name, table in TABLES.items()]
    figures = [f"    {name}: {entry.title}, {entry.row} [{entry.source}]" for name, entry in FIGURES.items()]
    sections.append(["figures", *figures])
    weights = [
        f"    {entry.name}: gamma {entry.gamma:g}, alpha {entry.alpha:g}, beta {entry.beta:g} [{entry.source}]"
        for entry in distiller_dict.values()
    ]
    about = "methods without topology; others are CE and KD-control, and with topology TopKD, CE+Top and <method>+Top"
    sections.append([about, *weights])
    for script in OPTIONS_OF:
        values = by_source((listed({name: value}), source) for name, value, source in settings_of(script))
        sections.append([f"{script}.py", *(f"    {line}" for line in values)])
    wrapped = (
        textwrap.fill(line, 120, subsequent_indent="        ", break_on_hyphens=False)
        for section in sections
        for line in [*section, ""]
    )
    return "\n".join(wrapped).rstrip()


def describe_table(name: str, table: Table) -> list[str]:
    """The table's own settings, its rows with what is taken by pair, and its arms."""
    lines = [f"{name}: {table.title} [{table.source}]"]
    own = [seeds(table)]
    if table.operator is not None:
        own.append(f"{table.operator} pooling")
    if table.dataset != "cifar100":
        own.append(f"data set {table.dataset}")
    if table.amp is not None:
        own.append(f"students with --amp {table.amp}")
    if table.adopted:
        own.append("torchvision's teachers")
    parts: dict[str, Any] = {"teacher": table.teacher, "student": table.student, "clouds": table.clouds}
    parts |= {"generate_PCD_PI": table.making, "train_ripsnet": table.fit}
    for what, value in parts.items():
        departing = departures(value)
        if departing:
            own.append(f"{what}: {listed(departing)}")
    lines.append(f"    {'; '.join(own)} [assumed]")
    recipe = dataset_dict[table.dataset].recipe
    source = "published" if recipe is None else "assumed: the field's"
    for row in table.rows:
        pair = pair_settings(*networks(row))
        lr = table.student.resolved(networks(row)[1], recipe).lr
        weights = f"alpha {pair.alpha:g}, delta {pair.delta:g}, {pair.operator} pooling [{pair.source}]"
        lines.append(f"    {row:<22} lr {lr:g} [{source}], {weights}")
    arms = [(arm.name + (f" ({listed(arm.options)})" if arm.options else ""), arm.source) for arm in table.arms]
    return lines + [f"    {line}" for line in by_source(arms)]


def seeds(table: Table) -> str:
    """'5 seeds (3 of TopKD-wasserstein; 1 of CE)': the table's number, and those of arms that have another."""
    others: dict[int, list[str]] = {}
    for arm in table.arms:
        if (count := table.seeds_of(arm)) != table.seeds:
            others.setdefault(count, []).append(arm.name)
    text = f"{table.seeds} seed{'s' if table.seeds > 1 else ''}"
    exceptions = "; ".join(f"{count} of {', '.join(names)}" for count, names in others.items())
    return f"{text} ({exceptions})" if exceptions else text


def settings_of(script: str) -> list[tuple[str, Any, str]]:
    """(name, default, source) of a script's options that make an experiment."""
    found: dict[str, tuple[str, Any, str]] = {}
    for section in OPTIONS_OF[script]:
        for name, entry in declared(section).items():
            if entry.source != PLACE:
                found.setdefault(name, (name, defaults(section)[name], entry.source))
    return list(found.values())


def departures(value: Any) -> dict[str, Any]:
    """The fields of settings that are not at their defaults."""
    own = defaults(type(value))
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != own[field.name]
    }


def listed(options: Mapping[str, Any]) -> str:
    """'dim 1, kd_T': the names with their values, where there are any."""
    return ", ".join(name if value in (None, ()) else f"{name} {value}" for name, value in options.items())


def by_source(entries: Iterable[tuple[str, str]]) -> list[str]:
    """(text, source) pairs as lines 'text, text, ... [source]'."""
    texts: dict[str, list[str]] = {}
    for text, source in entries:
        texts.setdefault(source, []).append(text)
    return [f"{', '.join(found)} [{source}]" for source, found in texts.items()]
