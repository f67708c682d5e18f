//! Things that are called by a name on the command line and in results.

/// The one of `all` that is called `wanted`.
///
/// # Errors
/// In words: there is none, and which there are. `kind` says of what.
pub(crate) fn find<T: Copy>(
    kind: &str,
    all: &[T],
    name: fn(T) -> &'static str,
    wanted: &str,
) -> Result<T, String> {
    all.iter()
        .copied()
        .find(|&known| name(known) == wanted)
        .ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|&known| name(known)).collect();
            format!(
                "there is no {kind} {wanted:?}; there are {}",
                known.join(", ")
            )
        })
}
