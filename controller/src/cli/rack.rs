//! `rackwright check|plan|apply|status|drift|kubeconfig`: what servers are, what they must become, and
//! making it so.
//!
//! Exit codes: 0 as planned; 1 failed, or a role has fewer good servers than its rule asks for; 2 bad input;
//! 3 enough servers are as planned but not all, or `drift` found some; 4 a plan was refused because something
//! moved since it was made; 5 a host key stopped us before login.

mod open;
mod show;
mod watch;

use super::artifacts::Places;
use crate::out::Out;
use crate::report::Report;
use clap::{Args, Subcommand};
use rackwright_core::lint::{Lint, lint};
use rackwright_rack::cluster::kubeconfig;
use rackwright_rack::drive::{Applied, Driver, now_s};
use rackwright_rack::objects::ADMINS;
use rackwright_rack::preflight::preflight;
use rackwright_rack::saved::{self, Saved};
use rackwright_rack::survey::{Survey, SurveyError};
use rackwright_wire::words::counted;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Enough servers, but not all; or drift.
const PARTIAL: u8 = 3;
/// Something moved since the plan was made.
const REFUSED: u8 = 4;
/// A host key stopped us.
const UNTRUSTED: u8 = 5;

/// What is worked on.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The inventory.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "inventory/lab.toml",
        env = "RACKWRIGHT_INVENTORY"
    )]
    inventory: PathBuf,
    /// A folder of playbooks instead of the built-in ones.
    #[arg(long, value_name = "DIR")]
    playbooks: Option<PathBuf>,
    /// Take host keys of servers that nobody vouched for as they come, and record them.
    #[arg(long)]
    accept_new: bool,
    /// Only these servers.
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    artifacts: Places,
}

/// Servers: what they are, and what they must become.
#[derive(Debug, Subcommand)]
pub(crate) enum RackCommand {
    /// Ask every server what it is, and say everything that stands in the way. Changes nothing.
    Check(Place),
    /// Compare every server with the playbooks, and save what would change. Changes nothing.
    Plan(Place),
    /// Make the rack as the saved plan says, or as a new one if none is pending.
    Apply(ApplyArgs),
    /// Show nodes, units, certificates and etcd.
    Status(Place),
    /// Name what is not as planned any more. Changes and saves nothing.
    Drift(Place),
    /// Write a kubeconfig with full rights, for people.
    Kubeconfig(KubeconfigArgs),
}

/// How to apply.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    place: Place,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Apply although the plan looks dangerous.
    #[arg(long)]
    insist: bool,
    /// Make a new plan even if one is pending; `--only` does so too. Without it a pending one is made anew when
    /// inventory, playbooks, artifacts or secrets changed.
    #[arg(long)]
    fresh: bool,
    /// Seconds to wait for the nodes once the API is ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait_s: u64,
}

/// Which kubeconfig.
#[derive(Debug, Args)]
pub(crate) struct KubeconfigArgs {
    #[command(flatten)]
    place: Place,
    /// Name of the person; stands in the API's audit log.
    #[arg(long, default_value = "admin")]
    user: String,
    /// Days until it ends.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=366))]
    days: u32,
    /// Where to write it, readable by its owner only [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs a command of this area.
pub(crate) async fn run(command: RackCommand, out: Out) -> Result<ExitCode, Report> {
    match command {
        RackCommand::Check(place) => Box::pin(check(&place, out)).await,
        RackCommand::Plan(place) => Box::pin(plan(&place, out)).await,
        RackCommand::Apply(args) => Box::pin(apply(&args, out)).await,
        RackCommand::Status(place) => Box::pin(status(&place, out)).await,
        RackCommand::Drift(place) => Box::pin(drift(&place, out)).await,
        RackCommand::Kubeconfig(args) => kubeconfig_for(&args, out),
    }
}

async fn check(place: &Place, out: Out) -> Result<ExitCode, Report> {
    let (driver, watch) = Box::pin(open::driver(place, out)).await?;
    let servers = open::chosen(place, &driver)?;
    let survey = driver.survey(&servers).await;
    watch.end().await;
    let obstacles = preflight(&driver.wanted.inventory, &survey.facts, now_s());
    show::facts(&driver, &survey, &obstacles, out);
    let blocked = obstacles.iter().any(|obstacle| obstacle.blocks) || !survey.failed.is_empty();
    Ok(code_of(&survey, u8::from(blocked)))
}

async fn plan(place: &Place, out: Out) -> Result<ExitCode, Report> {
    let (driver, watch) = Box::pin(open::driver(place, out)).await?;
    let _lock = driver.state.lock().map_err(open::state)?;
    let servers = open::chosen(place, &driver)?;
    let (survey, objects) = driver.compare(&servers).await;
    let saved = driver.build(&survey, objects).map_err(Report::new)?;
    let lints = lint(&saved.plan, &driver.wanted.secrets);
    watch.end().await;
    show::plan(&saved, &lints, out);
    let blocked = show::blocked(&driver, &survey, out);
    let broken = show::broken(&survey, out);
    if !saved.is_empty() && !blocked {
        driver.save(&saved).map_err(Report::new)?;
        out.say(format_args!("saved; `rackwright apply` makes it so"));
    } else if saved.is_empty() && saved.plan.absent.is_empty() && place.only.is_empty() {
        driver.retire().map_err(Report::new)?;
    }
    Ok(code_of(&survey, u8::from(blocked || broken)))
}

async fn drift(place: &Place, out: Out) -> Result<ExitCode, Report> {
    let (driver, watch) = Box::pin(open::driver(place, out)).await?;
    let servers = open::chosen(place, &driver)?;
    let (survey, objects) = driver.compare(&servers).await;
    watch.end().await;
    let saved = driver.build(&survey, objects).map_err(Report::new)?;
    show::plan(&saved, &[], out);
    let broken = show::broken(&survey, out);
    let code = if broken { 1 } else { u8::from(!saved.is_empty()) * PARTIAL };
    Ok(code_of(&survey, code))
}

async fn apply(args: &ApplyArgs, out: Out) -> Result<ExitCode, Report> {
    let started = Instant::now();
    let (driver, watch) = Box::pin(open::driver(&args.place, out)).await?;
    let _lock = driver.state.lock().map_err(open::state)?;
    let (saved, survey) = if let Some(saved) = pending(args, &driver, out)? {
        out.say(format_args!(
            "applying the saved plan of generation {}: {}",
            saved.plan.generation,
            counted(saved.changes(), "change")
        ));
        let lints = lint(&saved.plan, &driver.wanted.secrets);
        for lint in &lints {
            out.say(lint);
        }
        refuse_danger(args, &lints)?;
        (saved, None)
    } else {
        let servers = open::chosen(&args.place, &driver)?;
        let (survey, objects, changed) = driver.compare_at_rest(&servers).await.map_err(Report::new)?;
        let saved = driver.build(&survey, objects).map_err(Report::new)?;
        let lints = lint(&saved.plan, &driver.wanted.secrets);
        watch.pause();
        let blocked = show::blocked(&driver, &survey, out);
        let broken = show::broken(&survey, out);
        if saved.is_empty() && saved.plan.absent.is_empty() && survey.stuck.is_empty() {
            if args.place.only.is_empty() {
                driver.retire().map_err(Report::new)?;
            }
            show::nothing(&saved, changed, started.elapsed(), out);
            return Ok(ExitCode::SUCCESS);
        }
        show::before_apply(&saved, &lints, out);
        // What may not be applied is not saved either: the next apply would take it for a pending one.
        let nobody = survey.answered.is_empty() && survey.stuck.is_empty();
        if blocked || (broken && nobody) {
            return Ok(code_of(&survey, 1));
        }
        refuse_danger(args, &lints)?;
        if !saved.is_empty() {
            driver.save(&saved).map_err(Report::new)?;
        }
        consent(args)?;
        watch.resume();
        (saved, Some(survey))
    };
    let untrusted =
        survey.as_ref().is_some_and(|survey| survey.failed.values().any(SurveyError::is_untrusted));
    let applied = Box::pin(driver.apply(&saved, survey, Duration::from_secs(args.wait_s))).await;
    watch.end().await;
    if !saved.is_empty() {
        driver.conclude(&saved, &applied).map_err(Report::new)?;
    }
    show::applied(&saved, &applied, started.elapsed(), out);
    Ok(ExitCode::from(if untrusted { UNTRUSTED } else { applied_code(&applied) }))
}

/// The plan that may be applied as it was saved.
fn pending(args: &ApplyArgs, driver: &Driver, out: Out) -> Result<Option<Saved>, Report> {
    if args.fresh || !args.place.only.is_empty() {
        return Ok(None);
    }
    let Some(saved) = saved::pending(&driver.state).map_err(Report::new)? else { return Ok(None) };
    // Made with an old password, for example, it would bring that back.
    if !driver.is_current(&saved) {
        out.say(format_args!(
            "the saved plan of generation {} was made from another inventory, playbooks, artifacts or secrets: \
             making a new one",
            saved.plan.generation
        ));
        return Ok(None);
    }
    // Who was absent then may be here now: such a plan is made anew.
    Ok(Some(saved).filter(|saved| saved.plan.absent.is_empty()))
}

fn applied_code(applied: &Applied) -> u8 {
    if applied.is_untrusted() {
        UNTRUSTED
    } else if applied.is_refused() {
        REFUSED
    } else if applied.cluster.is_some() {
        1
    } else {
        applied.verdict.exit_code()
    }
}

/// A host key that stopped us outweighs everything else.
fn code_of(survey: &Survey, otherwise: u8) -> ExitCode {
    let untrusted = survey.failed.values().any(SurveyError::is_untrusted);
    ExitCode::from(if untrusted { UNTRUSTED } else { otherwise })
}

fn refuse_danger(args: &ApplyArgs, lints: &[Lint]) -> Result<(), Report> {
    if lints.is_empty() || args.insist {
        return Ok(());
    }
    let refused = "apply a plan that looks dangerous";
    Err(Report::new(refused).help("mend what is listed above, or add --insist").exit(REFUSED))
}

fn consent(args: &ApplyArgs) -> Result<(), Report> {
    let stdin = std::io::stdin();
    if args.yes || !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    Out::new(false).say("apply this? [y/N]");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|cause| Report::new(format!("read the answer: {cause}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Report::new("get a yes for this plan").help("the plan is saved: `rackwright apply` takes it up"))
}

async fn status(place: &Place, out: Out) -> Result<ExitCode, Report> {
    let (driver, watch) = Box::pin(open::driver(place, out)).await?;
    let servers = open::chosen(place, &driver)?;
    let survey = driver.survey(&servers).await;
    watch.end().await;
    let status = Box::pin(driver.status(&survey, now_s())).await;
    out.data(&status, &status);
    Ok(code_of(&survey, u8::from(!status.is_healthy())))
}

fn kubeconfig_for(args: &KubeconfigArgs, out: Out) -> Result<ExitCode, Report> {
    let (inventory, authorities) = open::authorities(&args.place)?;
    let life_s = u64::from(args.days) * 86_400;
    let identity =
        authorities.client("kubernetes", &args.user, ADMINS, life_s, now_s()).map_err(Report::new)?;
    let mut controls = inventory.of_role(rackwright_core::inventory::Role::Control);
    let Some(control) = controls.next() else {
        return Err(Report::new("find a control server in the inventory").exit(Report::BAD_INPUT));
    };
    let url = format!("https://{}:6443", control.address);
    let text = kubeconfig(&inventory.cluster.name, &args.user, &url, &identity);
    match &args.output {
        None => out.line(text.trim_end()),
        Some(path) => {
            open::write_private(path, &text)?;
            out.say(format_args!("{} is valid for {}", path.display(), counted(args.days, "day")));
        }
    }
    Ok(ExitCode::SUCCESS)
}
