"""What an evaluation found, as tables for people: the probe, and one table for each other task."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from service.evaluation_report import EvaluationReport, Figure, TaskReport
from service.store_tables import two_columns
from service.tables import ROW_TITLES, evaluation_table

TITLES = {
    "knn": "nearest neighbours, accuracy in %",
    "few_shot": "few-shot classification, accuracy in %",
    "clustering": "clustering",
    "link": "link prediction, in %",
}


def evaluation_tables(report: EvaluationReport) -> Group:
    """The probe where it was asked for, then the other tasks in the order asked for; pictures as paths."""
    tables = [evaluation_table(report)] if report.node_types else []
    tables += [task_table(task) for task in report.tasks if task.task != "picture"]
    pictures = {task.of: task.settings["file"] for task in report.tasks if task.task == "picture"}
    if pictures:
        tables.append(two_columns("pictures", pictures))
    return Group(*tables)


def task_table(task: TaskReport) -> Table:
    """A row for each kind of rows, a column for each figure."""
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in task.settings.items())
    table = Table(title=f"{TITLES[task.task]}: {task.of}", title_justify="left", caption=settings)
    names = list(dict.fromkeys(name for result in task.results for name in result.figures))
    table.add_column("rows", style="cyan")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    digits = 3 if task.task == "clustering" else 1
    titles: dict[str, str] = {str(name): title for name, title in ROW_TITLES.items()}
    for result in task.results:
        table.add_row(
            titles.get(result.rows, result.rows),
            *cells([result.figures.get(name) for name in names], digits=digits),
        )
    return table


def cells(figures: Sequence[Figure | None], *, digits: int) -> list[str]:
    """Means, with the deviation where there are several values; a dash where there is none."""
    found = []
    for figure in figures:
        if figure is None:
            found.append("-")
        elif len(figure.values) == 1:
            found.append(f"{figure.mean:.{digits}f}")
        else:
            found.append(f"{figure.mean:.{digits}f} ± {figure.deviation:.{digits}f}")
    return found
