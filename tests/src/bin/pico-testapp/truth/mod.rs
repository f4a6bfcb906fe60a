//! Memory of every kind that holds what [`pico_tests::truth`] says: filled, changed and compared page by page on
//! command, in the app itself and in children that it forks.

mod child;
mod place;

use std::borrow::Borrow;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard};

use anyhow::{Context, Result, anyhow, ensure};
use pico_tests::truth::{Digest, Kind, Page, Random, Region, Step, World, chosen, word};

use child::Child;
use place::Place;

/// Threads that read at random while the memory changes.
const STIRRERS: u64 = 2;

/// The memory, and what it must hold.
struct Truth {
    world: World,
    places: Vec<Place>,
    children: Vec<Option<Child>>,
}

static TRUTH: LazyLock<Mutex<Option<Truth>>> = LazyLock::new(Mutex::default);
/// Pages of the main thread's stack, lent by `main`.
static MAIN_STACK: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Lends pages of the main thread's stack; they must stay for as long as the program runs.
pub fn lend(stack: *mut u8) {
    MAIN_STACK.store(stack, Ordering::SeqCst);
}

fn lock() -> Result<MutexGuard<'static, Option<Truth>>> {
    TRUTH.lock().map_err(|_| anyhow!("poisoned"))
}

/// Makes and fills all regions.
pub fn fill() -> Result<String> {
    let mut truth = lock()?;
    ensure!(truth.is_none(), "filled already");
    let mut world = World::default();
    let places: Result<Vec<_>> = world
        .regions
        .iter()
        .map(|region| {
            Place::new(region.kind, region.pages.len()).with_context(|| format!("{:?}", region.kind))
        })
        .collect();
    let steps = world.fill();
    let children = world.children.iter().map(|_| None).collect();
    let mut made = Truth {
        world,
        places: places?,
        children,
    };
    for step in steps {
        made.carry_out(step)?;
    }
    *truth = Some(made);
    Ok("ok".into())
}

/// `SEED STEPS`: changes memory at random, while other threads read it.
pub fn change(words: &str) -> Result<String> {
    let [seed, steps] = numbers(words)?;
    let mut truth = lock()?;
    let truth = truth.as_mut().context("not filled")?;
    let stop = AtomicBool::new(false);
    // Only regions whose pages are always mapped, wherever they are.
    let calm: Vec<(usize, usize)> = truth
        .world
        .regions
        .iter()
        .zip(&truth.places)
        .filter(|(region, _)| {
            matches!(
                region.kind,
                Kind::Private | Kind::Huge | Kind::Shared | Kind::File
            )
        })
        .map(|(region, place)| (place.base().addr(), region.pages.len()))
        .collect();
    std::thread::scope(|scope| {
        for stirrer in 0..STIRRERS {
            let (stop, calm) = (&stop, &calm);
            scope.spawn(move || place::stir(calm, seed ^ stirrer, stop));
        }
        let mut random = Random::new(seed);
        let done = (0..steps).try_for_each(|_| {
            let Some(step) = truth.world.step(&mut random) else {
                return Ok(());
            };
            truth
                .carry_out(step)
                .with_context(|| format!("seed {seed}: {step:?}"))
        });
        stop.store(true, Ordering::SeqCst);
        done
    })?;
    Ok("ok".into())
}

/// `SEED PERCENT`: compares so many of all pages with the model; answers what was read, of the app itself and of
/// each child.
pub fn check(words: &str) -> Result<String> {
    let [seed, percent] = numbers(words)?;
    let percent = usize::try_from(percent)?;
    let mut truth = lock()?;
    let truth = truth.as_mut().context("not filled")?;
    let mut read = vec![compare(&truth.world.regions, &truth.places, seed, percent)?.to_string()];
    for child in &mut truth.children {
        read.push(match child {
            Some(child) => child.check(seed, percent)?,
            None => "-".into(),
        });
    }
    Ok(format!("ok {}", read.join(" ")))
}

fn numbers<const N: usize>(words: &str) -> Result<[u64; N]> {
    let numbers: Vec<u64> = words.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    numbers
        .try_into()
        .map_err(|_| anyhow!("{N} numbers are expected"))
}

/// Reads the chosen pages; the first that is not as the model says is an error that says what it holds.
fn compare(regions: &[Region], places: &[impl Borrow<Place>], seed: u64, percent: usize) -> Result<Digest> {
    let mut digest = Digest::default();
    for (region, page) in chosen(regions, seed, percent) {
        let Region { kind, pages, guarded } = &regions[region];
        let content = places[region].borrow().read(page, guarded[page])?;
        let holds = |id: u64| {
            (0..)
                .zip(content.iter())
                .all(|(at, found)| *found == word(id, at))
        };
        let zeros = content.iter().all(|found| *found == 0);
        let right = match pages[page] {
            Page::Zero => zeros,
            Page::Written(id) => holds(id),
            Page::Freed(id) => zeros || holds(id),
        };
        if !right {
            let found = content[0];
            let what = match (zeros, holds(found)) {
                (true, _) => "zeros".to_owned(),
                (_, true) => format!("what was written as {found}"),
                _ => format!("{found:#x} and more"),
            };
            return Err(anyhow!(
                "WRONG {kind:?} page {page}: {what}, not {:?}",
                pages[page]
            ));
        }
        match pages[page] {
            Page::Zero => digest.add(None),
            Page::Written(_) => digest.add(Some(content[0])),
            Page::Freed(_) => {}
        }
    }
    Ok(digest)
}

impl Truth {
    fn carry_out(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Fork(at) => {
                if let Some(before) = self.children[at].take() {
                    before.end()?;
                }
                let regions = self.world.children[at]
                    .clone()
                    .context("a child without memory")?;
                self.children[at] = Some(Child::fork(regions, &mut self.places)?);
                Ok(())
            }
            Step::Do {
                child: Some(child), ..
            } => self.children[child].as_mut().context("no child")?.carry_out(step),
            Step::Do {
                region,
                first,
                count,
                op,
                ..
            } => {
                let guarded = &self.world.regions[region].guarded;
                self.places[region].carry_out(first, count, op, guarded)
            }
        }
    }
}
