//! What combination of atoms is a rule, and which atoms must one of them be for it to match?
//!
//! An atom is one test of one field, numbered by its bucket. Invariant: a simplified expression
//! holds a constant only if it is nothing but that constant.

/// Number of an atom in its bucket.
pub type AtomId = u32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Const(bool),
    Atom(AtomId),
    Not(Box<Expr>),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    AtLeast(usize, Vec<Expr>),
}

impl Expr {
    pub fn negate(self) -> Expr {
        match self {
            Expr::Const(value) => Expr::Const(!value),
            Expr::Not(inner) => *inner,
            other => Expr::Not(Box::new(other)),
        }
    }

    /// Conjunction, simplified.
    pub fn all(parts: impl IntoIterator<Item = Expr>) -> Expr {
        let mut kept = Vec::new();
        for part in parts {
            match part {
                Expr::Const(true) => {}
                Expr::Const(false) => return Expr::Const(false),
                Expr::All(inner) => kept.extend(inner),
                other => kept.push(other),
            }
        }
        match kept.len() {
            0 => Expr::Const(true),
            1 => kept.remove(0),
            _ => Expr::All(kept),
        }
    }

    /// Disjunction, simplified.
    pub fn any(parts: impl IntoIterator<Item = Expr>) -> Expr {
        let mut kept = Vec::new();
        for part in parts {
            match part {
                Expr::Const(false) => {}
                Expr::Const(true) => return Expr::Const(true),
                Expr::Any(inner) => kept.extend(inner),
                other => kept.push(other),
            }
        }
        match kept.len() {
            0 => Expr::Const(false),
            1 => kept.remove(0),
            _ => Expr::Any(kept),
        }
    }

    /// At least `count` of `parts`, simplified.
    pub fn at_least(count: usize, parts: Vec<Expr>) -> Expr {
        let certain = parts.iter().filter(|p| **p == Expr::Const(true)).count();
        let open: Vec<_> = parts
            .into_iter()
            .filter(|p| !matches!(p, Expr::Const(_)))
            .collect();
        match count.saturating_sub(certain) {
            0 => Expr::Const(true),
            1 => Expr::any(open),
            count if count > open.len() => Expr::Const(false),
            count if count == open.len() => Expr::all(open),
            count => Expr::AtLeast(count, open),
        }
    }

    /// The value, asking `atom` only as far as needed.
    pub fn holds(&self, atom: &mut impl FnMut(AtomId) -> bool) -> bool {
        match self {
            Expr::Const(value) => *value,
            Expr::Atom(id) => atom(*id),
            Expr::Not(inner) => !inner.holds(atom),
            Expr::All(parts) => parts.iter().all(|p| p.holds(atom)),
            Expr::Any(parts) => parts.iter().any(|p| p.holds(atom)),
            Expr::AtLeast(count, parts) => {
                parts.iter().filter(|p| p.holds(atom)).take(*count).count() == *count
            }
        }
    }

    /// A set of indexed atoms of which at least one is true whenever the expression is, chosen to
    /// be rarely true; `None` if there is none. `cost` says how often an atom is expected to be
    /// true, `None` for an atom which the index does not find.
    pub fn necessary(&self, cost: &impl Fn(AtomId) -> Option<f64>) -> Option<(f64, Vec<AtomId>)> {
        match self {
            // Never true: the empty set is right.
            Expr::Const(false) => Some((0.0, Vec::new())),
            Expr::Const(true) | Expr::Not(_) => None,
            Expr::Atom(id) => Some((cost(*id)?, vec![*id])),
            Expr::All(parts) => parts
                .iter()
                .filter_map(|part| part.necessary(cost))
                .min_by(|a, b| a.0.total_cmp(&b.0)),
            // Sound for "at least n", n > 0, too: one of all must hold.
            Expr::Any(parts) | Expr::AtLeast(_, parts) => {
                parts
                    .iter()
                    .try_fold((0.0, Vec::new()), |(sum, mut set), part| {
                        let (more, atoms) = part.necessary(cost)?;
                        set.extend(atoms);
                        Some((sum + more, set))
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exprs() -> impl Strategy<Value = Expr> {
        let leaf = prop_oneof![
            (0u32..6).prop_map(Expr::Atom),
            any::<bool>().prop_map(Expr::Const)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let many = prop::collection::vec(inner.clone(), 0..4);
            prop_oneof![
                inner.prop_map(Expr::negate),
                many.clone().prop_map(Expr::All),
                many.clone().prop_map(Expr::Any),
                (1usize..4, many).prop_map(|(n, parts)| Expr::AtLeast(n, parts)),
            ]
        })
    }

    fn simplified(expr: &Expr) -> Expr {
        let each = |parts: &[Expr]| parts.iter().map(simplified).collect::<Vec<_>>();
        match expr {
            Expr::Not(inner) => simplified(inner).negate(),
            Expr::All(parts) => Expr::all(each(parts)),
            Expr::Any(parts) => Expr::any(each(parts)),
            Expr::AtLeast(n, parts) => Expr::at_least(*n, each(parts)),
            leaf => leaf.clone(),
        }
    }

    proptest! {
        #[test]
        fn simplifying_changes_no_value_and_necessary_atoms_are_necessary(
            expr in exprs(), bits in 0u32..64,
        ) {
            let mut atom = |id: AtomId| bits >> id & 1 == 1;
            let value = expr.holds(&mut atom);
            let simple = simplified(&expr);
            prop_assert_eq!(simple.holds(&mut atom), value);
            // Atoms 4 and 5 play those that are not indexed.
            let cost = |id: AtomId| (id < 4).then(|| f64::from(id));
            if let Some((_, atoms)) = simple.necessary(&cost) {
                prop_assert!(!value || atoms.into_iter().any(atom));
            }
        }
    }
}
