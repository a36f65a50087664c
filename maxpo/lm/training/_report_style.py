"""How a report looks, and the script of its selector."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { --ink: #1d2430; --soft: #5d6778; --line: #e3e7ee; --paper: #fff; --ground: #f5f7fa;
  --accent: #1f4e9c; --good: #1a7f5a; --bad: #b83a2b; --warn: #96610a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 16px 0 6px; }
p { margin: 6px 0; }
section.part { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 18px; }
.path, .soft { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
pre { margin: 8px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22em;
  overflow: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--ground); border-radius: 6px; padding: 8px 10px; unicode-bidi: isolate; }
.findings { list-style: none; margin: 0; padding: 0; }
.findings li { border-left: 4px solid var(--line); padding: 3px 0 3px 12px; margin: 9px 0; }
.findings .problem { border-color: var(--bad); }
.findings .problem > span { font-weight: 600; }
.findings .notice { border-color: #e0a93b; }
.findings .fact { border-color: #9db4d9; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; white-space: nowrap; }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.curves { display: grid; gap: 14px 22px;
  grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; font-weight: 600; display: flex;
  justify-content: space-between; gap: 8px; }
figcaption b { color: var(--accent); font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .raw { stroke-width: 1; opacity: .28; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; margin: 0 0 12px; }
.legend i { display: inline-block; width: 18px; height: 3px;
  vertical-align: middle; margin-right: 6px; }
img { max-width: 100%; height: auto; display: block; margin: 8px auto; }
#picker { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; margin: 0 0 12px;
  position: sticky; top: 0; background: var(--paper); padding: 8px 0; z-index: 1; }
select, button { font: inherit; font-size: 14px; padding: 4px 9px; border: 1px solid #c6cdd8;
  border-radius: 6px; background: var(--paper); color: var(--ink); max-width: 100%; }
button { cursor: pointer; }
button:disabled { opacity: .35; cursor: default; }
.group { border-top: 1px solid var(--line); padding: 14px 0; }
.completion { border-left: 5px solid var(--line); padding: 2px 0 2px 12px; margin: 12px 0; }
.completion > p { display: flex; flex-wrap: wrap; gap: 3px 10px; align-items: center;
  margin: 0; font-size: 13px; }
.badge { border-radius: 20px; padding: 1px 9px; font-size: 12px; font-weight: 600;
  background: #e6ecf7; color: var(--accent); }
.badge.truncated { background: #fbf0d9; color: var(--warn); }
.badge.failed { background: #fae3e0; color: var(--bad); }
.correct { color: var(--good); }
.failure { color: var(--bad); }
summary { cursor: pointer; color: var(--accent); font-size: 14px; padding: 3px 0; }
[hidden] { display: none !important; }
@media (max-width: 600px) { main { padding: 18px 10px 40px; } section.part { padding: 14px 12px; } }
"""

SCRIPT = """
"use strict";
(() => {
  const picker = document.getElementById("picker");
  if (!picker) return;
  const groups = [...document.querySelectorAll(".group")];
  const [run, split, step] = ["run", "split", "step"].map(name => picker.elements[name]);
  const fields = [run, split, step];
  const [back, on] = picker.querySelectorAll("button");
  const of = (group, field) => group.dataset[field.name];
  // Each field offers what there is with the choices before it; a choice that is gone: the last.
  const fill = (field, wanted) => {
    const before = fields.slice(0, fields.indexOf(field));
    const values = new Set(groups.filter(group => before.every(f => of(group, f) === f.value))
      .map(group => of(group, field)));
    field.replaceChildren(...[...values].map(value => new Option(value)));
    field.value = values.has(wanted) ? wanted : [...values].pop();
    field.parentElement.hidden = field !== step && values.size < 2;
  };
  const choose = wanted => {
    fields.forEach(field => fill(field, wanted[field.name]));
    for (const group of groups)
      group.hidden = fields.some(field => of(group, field) !== field.value);
    back.disabled = step.selectedIndex === 0;
    on.disabled = step.selectedIndex === step.options.length - 1;
  };
  const chosen = () => Object.fromEntries(fields.map(field => [field.name, field.value]));
  // In the address, so that a report that is made again opens where it was.
  const keep = () => history.replaceState(null, "", "#" + new URLSearchParams(chosen()));
  const named = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const move = by => { step.selectedIndex += by; choose(chosen()); keep(); };
  picker.addEventListener("change", () => { choose(chosen()); keep(); });
  back.addEventListener("click", () => move(-1));
  on.addEventListener("click", () => move(1));
  addEventListener("hashchange", () => choose(named()));
  const first = { run: run.value, split: "train" };
  picker.hidden = false;
  choose({ ...first, ...named() });
})();
"""
