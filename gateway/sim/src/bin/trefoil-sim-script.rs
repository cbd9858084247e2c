//! `trefoil-sim-script NAME COMMANDS`: runs one fixed script. `./dev bench instructions` runs this program under a profiler.
//! Prints the number of counted commands. Without arguments, lists the names of the scripts.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use trefoil_sim::script::{SCRIPTS, run};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [] => SCRIPTS.iter().for_each(|script| println!("{}", script.name)),
        [name, commands] => {
            let script = SCRIPTS.iter().find(|script| script.name == name).context("no such script")?;
            println!("{}", run(script, commands.parse()?)?);
        }
        _ => bail!("trefoil-sim-script NAME COMMANDS"),
    }
    Ok(())
}
