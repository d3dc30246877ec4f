"""The report room: what was measured beside what papers report, as tables, plots and one page. Needs no torch."""
