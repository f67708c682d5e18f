//! Doing several things at once.

use std::sync::{Mutex, mpsc};
use std::thread;

use super::ModelError;

/// Does `run` with every one of `items` at once, each in a thread of its own.
/// When all of them have run, each thread does `end` with what came of its own.
///
/// # Errors
/// The first error, when all have ended.
pub(super) fn at_once<T, R, E>(
    items: impl IntoIterator<Item = T>,
    run: impl Fn(T) -> Result<R, ModelError> + Sync,
    end: impl Fn(R) -> Result<E, ModelError> + Sync,
) -> Result<Vec<E>, ModelError>
where
    T: Send,
    E: Send,
{
    let (run, end) = (&run, &end);
    // Held until all have run.
    let gate = Mutex::new(());
    let gate = &gate;
    let closed = gate.lock();
    // Nothing is sent: it closes when the last sender is dropped.
    let (running, all_ran) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| {
                let running = running.clone();
                thread::Builder::new()
                    .spawn_scoped(scope, move || {
                        let ran = run(item);
                        drop(running);
                        drop(gate.lock());
                        ran.and_then(end)
                    })
                    .map_err(|source| ModelError::host("start", "a thread", source))
            })
            .collect();
        drop(running);
        let _ = all_ran.recv();
        drop(closed);
        // All of them are waited for before the first error is told.
        let done: Vec<_> = threads
            .into_iter()
            .map(|thread| match thread?.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect();
        done.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelId;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn all_run_at_once_before_the_first_ends() {
        let together = Barrier::new(8);
        let ran = AtomicU32::new(0);
        let squares = at_once(
            0..8,
            |n| {
                together.wait();
                ran.fetch_add(1, Ordering::SeqCst);
                Ok(n)
            },
            |n| {
                assert_eq!(ran.load(Ordering::SeqCst), 8);
                Ok(n * n)
            },
        );
        assert_eq!(squares.unwrap(), [0, 1, 4, 9, 16, 25, 36, 49]);
    }

    #[test]
    fn one_failure_is_all_s() {
        let ended = AtomicU32::new(0);
        let failed = at_once(
            0..8,
            |n| match n {
                5 => Err(ModelError::Unavailable {
                    model: ModelId::Microvm,
                    reason: "the sixth".into(),
                }),
                n => Ok(n),
            },
            |_| {
                ended.fetch_add(1, Ordering::SeqCst);
                Ok(())
            },
        );
        assert!(failed.unwrap_err().to_string().contains("the sixth"));
        assert_eq!(ended.load(Ordering::SeqCst), 7);
    }
}
