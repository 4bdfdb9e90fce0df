"use strict";
// The feature lab's formulas, for the page: F_p by the same integral as backfire.theory.limit, but
// with its own rule and its own normal distribution. No page, no state; tested against Python.
globalThis.featureLab = (() => {
  const ROOT_2PI = Math.sqrt(2 * Math.PI);

  // Phi by its series of positive terms (no cancellation); beyond 8 it is 0 or 1 to 1e-15.
  function normal(x) {
    if (x < -8) return 0;
    if (x > 8) return 1;
    let term = x, sum = x;
    for (let n = 3; Math.abs(term) > 1e-17 * Math.abs(sum); n += 2) sum += (term *= (x * x) / n);
    return 0.5 + (sum * Math.exp((-x * x) / 2)) / ROOT_2PI;
  }

  // Nodes and weights of the minimum of K-1 standard normals: an even grid, fine enough for any K here.
  const rules = new Map();
  function rule(classes) {
    if (rules.has(classes)) return rules.get(classes);
    const density = (u) => Math.exp((-u * u) / 2) * normal(-u) ** (classes - 2);
    const step = 0.16, nodes = [], weights = [];
    let total = 0;
    for (let u = -8; u <= 8; u += step) {
      const weight = density(u);
      nodes.push(u); weights.push(weight); total += weight;
    }
    const kept = [];
    nodes.forEach((u, i) => { if (weights[i] > 1e-13 * total) kept.push([u, weights[i] / total]); });
    rules.set(classes, kept);
    return kept;
  }

  function accuracyAt(x, p, classes) {
    if (p === 0) return x > 0 ? 1 : x < 0 ? 0 : 1 / classes;
    const a = (p * (classes + 1 - p * classes)) / classes, b = p / classes;
    const centre = x / Math.sqrt(a), slope = Math.sqrt(b / a);
    let sum = 0;
    for (const [u, weight] of rule(classes)) sum += weight * normal(centre + slope * u);
    return Math.min(1, sum);
  }

  // s: {p, classes, weight, nv, ns (aligned), mv, ms (optimal), ov, os (shared)}
  function blend(s) {
    const a = s.weight ** 2, b = (1 - s.weight) ** 2;
    const mix = (f, n, m, o) => f(a) * (n - o) + f(b) * (m - o) + o;
    return {
      spurious: mix((w) => w, s.ns, s.ms, s.os),
      square: mix((w) => w * w, s.ns, s.ms, s.os),
      invariant: mix((w) => w, s.nv, s.mv, s.ov),
    };
  }

  const argument = (p, spurious, invariant, square) => {
    const mean = (1 - p) * spurious + invariant;
    return mean === 0 ? 0 : mean / Math.sqrt(square);
  };

  function neededInvariant(s) {
    const a = s.weight ** 2, b = (1 - s.weight) ** 2;
    const mixed = blend(s);
    const root = Math.sqrt(mixed.square), rootN = Math.sqrt(s.ns);
    const free = b * (s.mv - s.ov) + (1 - a) * s.ov;
    const gain = root - a * rootN;
    if (!(gain > 1e-12 * root)) return Infinity;
    const keep = 1 - s.p;
    return Math.max(s.ov, ((keep * mixed.spurious + free) * rootN - keep * s.ns * root) / gain);
  }

  function evaluate(s) {
    const mixed = blend(s), b = (1 - s.weight) ** 2;
    const before = argument(s.p, s.ns, s.nv, s.ns);
    const after = argument(s.p, mixed.spurious, mixed.invariant, mixed.square);
    return {
      before: accuracyAt(before, s.p, s.classes),
      after: accuracyAt(after, s.p, s.classes),
      premises: s.nv > s.mv && s.ns < s.ms,
      falls: after < before && s.p > 0,
      moreSpuriousHurts:
        2 * (1 - s.p) * mixed.square < b * ((1 - s.p) * mixed.spurious + mixed.invariant),
      needed: s.p > 0 ? neededInvariant(s) : Infinity,
    };
  }

  return { normal, accuracyAt, evaluate, neededInvariant };
})();
