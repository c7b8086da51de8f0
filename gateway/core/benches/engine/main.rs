//! What a record costs in the engine alone. `cargo bench -p sluice-core` by the clock: each call handles 1,000 records, so
//! its microseconds are nanoseconds a record. `benches/instructions.sh` counts instructions instead, for machines whose
//! clock says little.

mod work;

use divan::Bencher;
use work::{ALL, Kept, Ready, Work};

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "--once").skip(1);
    match args.next() {
        None => divan::main(),
        Some(name) => {
            let work = ALL.iter().find(|work| work.name == name).expect("the name of a work");
            drop(measured((work.ready)()));
        }
    }
}

/// Callgrind counts within this.
#[inline(never)]
fn measured(work: Ready) -> Kept {
    work()
}

#[divan::bench(args = ALL, sample_count = 200, sample_size = 1)]
fn engine(bencher: Bencher<'_, '_>, work: &Work) {
    bencher.with_inputs(work.ready).bench_local_values(measured);
}
