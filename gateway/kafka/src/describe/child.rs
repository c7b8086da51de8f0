//! The process that asks.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Answer, Question, Told};
use crate::ffi::{Code, GroupRequest, Handle, Purpose, code_name, end_process, expendable_process};

/// How often it is looked whether an answer is there.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// It ends by a signal if it is not done so long after its time.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// All that a process started by a [`Describer`](super::Describer) does: it reads what to ask from its standard input, asks, writes
/// the answers to its standard output, and ends.
pub fn describe_groups() -> ! {
    expendable_process(super::WITHIN + HANGS_AFTER);
    let said = match serde_json::from_reader::<_, Question>(std::io::stdin().lock()) {
        Ok(question) => ask(&question),
        Err(error) => {
            eprintln!("error: standard input is not a question of groups: {error}");
            false
        }
    };
    // Without dropping the client: that may wait, and abort.
    end_process(i32::from(!said));
}

/// `false`: nobody listens.
fn ask(question: &Question) -> bool {
    let handle = match Handle::new(Purpose::Fetch, &question.properties) {
        Ok(handle) => Arc::new(handle),
        Err(error) => return question.groups.iter().all(|group| tell(group, Err(error.to_string()))),
    };
    let within = Duration::from_millis(question.within_ms);
    let until = Instant::now() + within;
    let request = |group: &String| (group.clone(), GroupRequest::new(&handle, group, within));
    let mut asked: Vec<_> = question.groups.iter().map(request).collect();
    while !asked.is_empty() && Instant::now() < until {
        let mut listens = true;
        asked.retain(|(group, request)| {
            let Some(answer) = request.answer() else { return true };
            listens &= tell(group, answer.map_err(|code| code_name(code).to_owned()));
            false
        });
        if !listens {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let late = code_name(Code::RD_KAFKA_RESP_ERR__TIMED_OUT).to_owned();
    let said = asked.iter().all(|(group, _)| tell(group, Err(late.clone())));
    std::mem::forget(asked);
    std::mem::forget(handle);
    said
}

fn tell(group: &str, answer: Answer) -> bool {
    let Ok(mut line) = serde_json::to_vec(&Told { group: group.to_owned(), answer }) else { return false };
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    output.write_all(&line).and_then(|()| output.flush()).is_ok()
}
