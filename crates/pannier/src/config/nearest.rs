//! The known name nearest to one that is not.

/// The candidate with the fewest changed letters, if they are few enough to be a slip.
pub(super) fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let leaf = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    candidates
        .iter()
        .map(|candidate| {
            (distance(name, candidate).min(distance(&leaf(name), &leaf(candidate))), *candidate)
        })
        .min()
        .filter(|(changed, _)| *changed * 3 <= leaf(name).len().max(3))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, by rows (Wagner and Fischer, 1974).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let change = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expect) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(left, right), expect, "{left} {right}");
        }
        assert_eq!(nearest("stor", &["store", "listen"]), Some("store"));
        assert_eq!(nearest("zzzzz", &["store", "listen"]), None);
    }
}
