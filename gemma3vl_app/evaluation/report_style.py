"""What the report adds to the style sheet of exported pages."""

REPORT_STYLE = """
header, main, body > footer { max-width: 58rem; }
section { margin: 0 0 2.5rem; }
h2 { margin: 0; font-size: 1.15rem; }
.about { margin: .15rem 0 .8rem; color: var(--muted); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .4rem .75rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; }
tbody th { font-weight: 400; }
.all th, .all td { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
td:last-child, thead th:last-child { width: 35%; min-width: 9rem; padding: .4rem 0 .4rem .5rem; }
.bar { position: relative; height: .85rem; border-radius: .2rem; background: var(--user); }
.bar > div { height: 100%; border-radius: .2rem; background: var(--accent); opacity: .75; }
.bar > i { position: absolute; top: calc(50% - 1px); height: 2px; background: var(--text); }
.case { display: grid; grid-template-columns: minmax(0, 17rem) minmax(0, 1fr); gap: 1.25rem;
  padding: 1.1rem 0; border-top: 1px solid var(--line); break-inside: avoid-page; }
.case .pictures { align-content: start; }
.case img { display: block; max-width: 100%; width: auto; height: auto; max-height: 20rem;
  border: 1px solid var(--line); border-radius: .5rem; background: #ffffff; }
.case h3 { margin: 0 0 .5rem; font-size: .85rem; font-weight: 600; color: var(--muted); }
.case .score { float: right; font-variant-numeric: tabular-nums; }
dl.plain { margin: 0; padding: 0; border: 0; font-size: .95rem; }
dl.plain dt { color: var(--muted); font-weight: 400; }
.said { color: var(--accent); }
section > dl { font-size: .85rem; }
ul { margin: 0; padding-left: 1.2rem; font-size: .9rem; }
@media (max-width: 40rem) { .case { grid-template-columns: 1fr; } }
"""
