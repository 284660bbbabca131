"""The style sheet of an exported page: light, dark, narrow and printed."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1d2025; --muted: #626a76; --line: #dfe3e8;
  --user: #eef3fa; --system: #f6f6f3; --accent: #2d5fae;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171b; --text: #e5e7ea; --muted: #9aa3af; --line: #30353d;
    --user: #202938; --system: #1f2024; --accent: #8db5f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere;
}
header, main, body > footer { max-width: 46rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; padding-bottom: 1.25rem; border-bottom: 1px solid var(--line); }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
header p { margin: .5rem 0 0; color: var(--muted); font-size: .9rem; }
body > footer { padding-top: 1rem; padding-bottom: 2.5rem; color: var(--muted);
  font-size: .8rem; border-top: 1px solid var(--line); }
main { padding-top: 1.5rem; padding-bottom: 1.5rem; }
.turn { margin: 0 0 1.75rem; }
.turn h2, .turn h3 { margin: 0 0 .35rem; font-size: .8rem; font-weight: 600; color: var(--muted);
  letter-spacing: .02em; }
.user, .system { padding: .8rem 1rem .9rem; border-radius: .75rem; background: var(--user); }
.system { background: var(--system); border: 1px dashed var(--line); }
.assistant { padding: 0 1rem; }
.assistant > h2, .assistant > h3 { color: var(--accent); }
.text { white-space: pre-wrap; unicode-bidi: plaintext; tab-size: 4; }
.text + .text, .pictures + .text, .text + .pictures { margin-top: .7rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; max-height: 26rem; width: auto;
  border-radius: .5rem; border: 1px solid var(--line); background: #ffffff; }
.pictures:has(figure + figure) img { max-height: 15rem; }
figcaption, .again { margin-top: .25rem; color: var(--muted); font-size: .8rem; }
details { margin-top: .6rem; font-size: .8rem; color: var(--muted); }
summary { cursor: pointer; width: fit-content; max-width: 100%; }
summary:hover { color: var(--text); }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px;
  border-radius: .2rem; }
a { color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem .9rem;
  margin: .5rem 0 0; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .5rem; }
dt { font-weight: 600; }
dd { margin: 0; }
.versions { margin: -1rem 0 1.75rem; padding: 0 1rem; }
.branch { margin-top: .75rem; padding: .9rem 0 0 1rem; border-left: 3px solid var(--line);
  font-size: 1rem; color: var(--text); }
.branch > p { margin: 0 0 .9rem; color: var(--muted); font-size: .8rem; }
.branch .turn { margin-bottom: 1rem; }
@media (max-width: 34rem) {
  header, main, body > footer { padding-left: .8rem; padding-right: .8rem; }
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.3rem; }
  .assistant, .versions { padding: 0 .2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
}
@media print {
  .turn, figure { break-inside: avoid-page; }
  .user, .system { border: 1px solid var(--line); }
}
"""
