"use strict";
// Sliders in, words and a map out. State lives in the sliders and in the address (#p=.95&nv=10...).
(() => {
  const { evaluate } = globalThis.featureLab;
  const inputs = [...document.querySelectorAll("input[data-key]")];
  const put = (id, text) => { document.getElementById(id).textContent = text; };
  const percent = (x) => (100 * x).toFixed(2) + " %";
  const canvas = document.getElementById("map"), pen = canvas.getContext("2d");
  const MAX_NV = 60, MAX_NS = 400;
  let frame = 0;

  function state() {
    const s = Object.fromEntries(inputs.map((i) => [i.dataset.key, Number(i.value)]));
    s.ov = Math.min(s.ov, s.nv, s.mv);
    s.os = Math.min(s.os, s.ns, s.ms);
    return s;
  }

  function show() {
    const s = state(), told = evaluate(s);
    for (const input of inputs) {
      const used = s[input.dataset.key];
      const clipped = used < Number(input.value) ? `${used} (all there are)` : input.value;
      document.querySelector(`output[for="${input.id}"]`).textContent = clipped;
    }
    put("before", percent(told.before));
    put("after", percent(told.after));
    put("change", (told.after >= told.before ? "+" : "−") +
      (100 * Math.abs(told.after - told.before)).toFixed(2) + " points");
    put("premises", told.premises ? "hold" : "do not hold");
    put("conclusion", told.falls ? "accuracy falls" : "accuracy does not fall");
    put("verdict", told.falls
      ? (told.premises ? "As the theorem says." : "It falls although the premises do not hold.")
      : (told.premises ? "A counter-example: the premises hold, the conclusion does not."
        : "The theorem says nothing here."));
    document.getElementById("verdict").className =
      told.falls ? "fall" : told.premises ? "counter" : "silent";
    put("theorem1", `one more spurious feature of the attacker's ${
      told.moreSpuriousHurts ? "lowers" : "raises"} the accuracy after`);
    put("needed", Number.isFinite(told.needed)
      ? `more than ${told.needed.toFixed(2)} invariant features (it has ${s.nv})`
      : "no number of invariant features");
    // Numbers at once; the map, which is two thousand of them, once a frame.
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => draw(s));
  }

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function draw(s) {
    const columns = 66, rows = 36;
    const width = canvas.width, height = canvas.height, left = 52, bottom = 40, top = 8, right = 10;
    const w = (width - left - right) / columns, h = (height - top - bottom) / rows;
    const x = (ns) => left + ((ns - 1) / (MAX_NS - 1)) * w * columns;
    const y = (nv) => height - bottom - (nv / MAX_NV) * h * rows;
    pen.fillStyle = color("--paper");
    pen.fillRect(0, 0, width, height);
    const falling = color("--s2"), rising = color("--s1");
    for (let i = 0; i < columns; i++) {
      for (let j = 0; j < rows; j++) {
        const ns = 1 + ((i + 0.5) / columns) * (MAX_NS - 1), nv = ((j + 0.5) / rows) * MAX_NV;
        const cell = { ...s, ns, nv, os: Math.min(s.os, ns), ov: Math.min(s.ov, nv) };
        const told = evaluate(cell);
        const size = Math.abs(told.after - told.before);
        pen.globalAlpha = 0.2 + 0.8 * Math.min(1, size / 0.1);
        pen.fillStyle = told.falls ? falling : rising;
        // Whole pixels: translucent cells must neither overlap nor leave gaps.
        const x0 = Math.round(left + i * w), x1 = Math.round(left + (i + 1) * w);
        const y0 = Math.round(height - bottom - (j + 1) * h), y1 = Math.round(height - bottom - j * h);
        pen.fillRect(x0, y0, x1 - x0, y1 - y0);
      }
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = pen.fillStyle = color("--ink");
    pen.lineWidth = 2;
    pen.setLineDash([8, 5]);
    if (s.mv < MAX_NV && s.ms > 1) {
      pen.strokeRect(x(1), y(MAX_NV), x(Math.min(s.ms, MAX_NS)) - x(1), y(s.mv) - y(MAX_NV));
    }
    pen.setLineDash([]);
    pen.beginPath();
    pen.arc(x(s.ns), y(s.nv), 7, 0, 2 * Math.PI);
    pen.stroke();
    pen.font = "22px system-ui, sans-serif";
    pen.textAlign = "center";
    for (let ns = 100; ns <= MAX_NS; ns += 100) pen.fillText(String(ns), x(ns) - (ns === MAX_NS ? 12 : 0), height - 12);
    pen.fillText("n_s", x(50), height - 12);
    pen.textAlign = "right";
    for (let nv = 0; nv < MAX_NV; nv += 20) pen.fillText(String(nv), left - 8, y(nv) + 7);
    pen.fillText("n_v", left - 8, y(MAX_NV) + 16);
  }

  const names = new URLSearchParams(location.hash.slice(1));
  for (const input of inputs) {
    if (names.has(input.dataset.key)) input.value = names.get(input.dataset.key);
    input.addEventListener("input", () => {
      show();
      const now = new URLSearchParams(inputs.map((i) => [i.dataset.key, i.value]));
      history.replaceState(null, "", "#" + now);
    });
  }
  document.getElementById("reset").addEventListener("click", () => {
    for (const input of inputs) input.value = input.defaultValue;
    history.replaceState(null, "", "#");
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
})();
