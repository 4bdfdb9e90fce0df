"""The theory behind self-degraded defense, made checkable.

    features      models as weighted sets of invariant and spurious features; single, ensembles
    limit         F_p, the accuracy with many spurious features (quadrature and sampler)
    exact         the accuracy with finitely many, by generating functions
    simulate      the accuracy by drawing the data model, noise included
    theorems      Assumption 1, Lemma 1, Theorems 1 and 2 as statements one can evaluate
    region        where Theorem 2's conclusion holds, and what a defense would have to reach
    learned       the same predictions against models that were really fitted
    bradley_terry preference probabilities and one softmax step, on paper
    trace         the same quantities along a real fine-tuning run
    figures, page what the command line draws

`docs/theory.md` gives notation, formulas and the status of every claim. Nothing of the pipeline
imports this package.
"""
