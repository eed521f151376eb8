//! What every store must do, written against the trait. A second implementation adds one line to
//! [`stores`] at the end.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers may panic")]

use rackwright_core::job::{
    CheckpointRef, Class, Event, JobPhase, JobRecord, JobSpec, Limits, Outcome, Resources, TaskCounts, What,
};
use rackwright_core::sched::{Config, Sched};
use rackwright_store::{
    AttemptRow, AuditQuery, AuditRow, Batch, DocumentRow, IdempotencyKey, JobQuery, JobUpdate, Role, Seq,
    Store, StoreError, Submit, TokenRow, UsageRow,
};
use rackwright_wire::id::{AttemptNo, JobId, NodeName, Owner, PodKey, Project, TaskIndex, Team};

const NOW: u64 = 1_790_000_000_000;

fn owner(name: &str) -> Owner {
    Owner::new(name).unwrap()
}

fn team(name: &str) -> Team {
    Team::new(name).unwrap()
}

fn submit(body: &str) -> Submit {
    let spec = JobSpec::from_json(body.as_bytes(), &Limits::default()).unwrap();
    let (owner, team) = (owner("ada"), team("vision"));
    Submit { owner, team, spec, datasets: Vec::new(), at_ms: NOW, idempotency: None }
}

fn plain() -> Submit {
    submit(r#"{"name": "fit", "image": "busybox"}"#)
}

fn depending_on(job: JobId) -> Submit {
    submit(&format!(r#"{{"name": "fit", "image": "busybox", "depends_on": ["{job}"]}}"#))
}

fn keyed(key: &str, digest: &str) -> Submit {
    let key = IdempotencyKey::new(key).unwrap();
    Submit { idempotency: Some((key, digest.to_owned())), ..plain() }
}

fn ended(id: JobId, outcome: Outcome) -> JobUpdate {
    let counts = TaskCounts { succeeded: 1, ..TaskCounts::default() };
    JobUpdate {
        id,
        phase: JobPhase::Finished,
        counts,
        outcome: Some(outcome),
        started_at_ms: Some(NOW + 1),
        finished_at_ms: Some(NOW + 2),
    }
}

fn pod(job: JobId, task: u32, attempt: u32) -> PodKey {
    PodKey { job, task: TaskIndex(task), attempt: AttemptNo(attempt) }
}

fn attempt(pod: PodKey, from_ms: u64, until_ms: u64) -> AttemptRow {
    AttemptRow {
        pod,
        uid: None,
        node: NodeName::new("ml1").unwrap(),
        outcome: Outcome::Succeeded,
        exit_code: Some(0),
        reason: String::new(),
        placed_at_ms: from_ms,
        started_at_ms: Some(from_ms),
        finished_at_ms: until_ms,
        resources: Resources::default(),
        resumed: None,
        checkpoints: vec![CheckpointRef { task: pod.task, step: 7, set: "set".to_owned() }],
        log_tail: "line\n".to_owned(),
    }
}

fn tick(at_ms: u64) -> Event {
    Event::new(at_ms, What::Tick)
}

async fn accept(store: &impl Store, what: Submit) -> JobRecord {
    store.submit(what).await.unwrap().record
}

async fn an_accepted_job_is_listed_logged_and_audited(store: impl Store) {
    let accepted = store.submit(plain()).await.unwrap();
    let id = accepted.record.id;
    let row = store.job(id).await.unwrap().unwrap();
    assert_eq!(row.record, accepted.record);
    assert_eq!((row.state.phase, row.state.counts.pending), (JobPhase::Pending, 1));
    let recovered = store.recover().await.unwrap();
    let job = Box::new(accepted.record);
    assert_eq!(recovered.events, [(accepted.seq, Event::new(NOW, What::Submitted { job }))]);
    let audit = store.audit(AuditQuery::default()).await.unwrap();
    assert_eq!((audit.rows[0].action.as_str(), &audit.rows[0].subject), ("job.submit", &id.to_string()));
    assert!(store.job(JobId::MIN).await.unwrap().is_none());
}

async fn ids_rise_even_when_the_clock_goes_back(store: impl Store) {
    let first = accept(&store, plain()).await.id;
    let second = accept(&store, Submit { at_ms: NOW - 60_000, ..plain() }).await.id;
    let third = accept(&store, Submit { at_ms: NOW + 60_000, ..plain() }).await.id;
    assert!(first < second && second < third);
    assert_eq!(third.get(), NOW + 60_000, "ids follow the clock, so a restored store gives out new ones");
}

async fn a_repeated_key_answers_the_first_job_and_changes_nothing(store: impl Store) {
    let first = store.submit(keyed("k1", "digest")).await.unwrap();
    let again = store.submit(keyed("k1", "digest")).await.unwrap();
    assert_eq!((again.record, again.seq, again.replayed), (first.record.clone(), first.seq, true));
    let other_body = store.submit(keyed("k1", "another")).await;
    assert!(matches!(other_body, Err(StoreError::KeyReused { first: job }) if job == first.record.id));
    let other_owner = Submit { owner: owner("grace"), ..keyed("k1", "another") };
    assert!(!store.submit(other_owner).await.unwrap().replayed, "keys are scoped to their owner");
    let other_team = Submit { team: team("audio"), ..keyed("k1", "another") };
    assert!(!store.submit(other_team).await.unwrap().replayed, "and to their team");
    assert_eq!(store.recover().await.unwrap().events.len(), 3);
}

async fn one_key_in_many_requests_at_once_makes_one_job(store: impl Store) {
    let submits = (0..32).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.submit(keyed("k", "digest")).await.unwrap() })
    });
    let mut fresh = 0;
    let mut ids = std::collections::BTreeSet::new();
    for submit in submits.collect::<Vec<_>>() {
        let accepted = submit.await.unwrap();
        fresh += u32::from(!accepted.replayed);
        ids.insert(accepted.record.id);
    }
    assert_eq!((fresh, ids.len()), (1, 1));
}

async fn a_refused_request_leaves_nothing_and_spoils_no_neighbour(store: impl Store) {
    let submits = (0..40).map(|index| {
        let store = store.clone();
        let what = if index % 2 == 0 { plain() } else { depending_on(JobId::MAX) };
        tokio::spawn(async move { store.submit(what).await.is_ok() })
    });
    let mut accepted = 0;
    for submit in submits.collect::<Vec<_>>() {
        accepted += usize::from(submit.await.unwrap());
    }
    assert_eq!(accepted, 20);
    assert_eq!(store.recover().await.unwrap().events.len(), 20);
    assert_eq!(store.jobs(JobQuery::default()).await.unwrap().rows.len(), 20);
}

async fn a_dependency_must_be_known_and_not_have_ended_badly(store: impl Store) {
    let unknown = store.submit(depending_on(JobId::MAX)).await;
    assert!(matches!(unknown, Err(StoreError::Dependency { .. })));
    let first = accept(&store, plain()).await.id;
    let theirs = Submit { team: team("audio"), ..depending_on(first) };
    let unseen = store.submit(theirs).await.unwrap_err().to_string();
    assert_eq!(unseen, format!("depend on {first}: it is not known"), "another team's job");
    assert!(accept(&store, depending_on(first)).await.dependencies_met.is_empty());
    let update = |outcome| Batch { jobs: vec![ended(first, outcome)], ..Batch::default() };
    store.append(update(Outcome::Succeeded)).await.unwrap();
    assert_eq!(accept(&store, depending_on(first)).await.dependencies_met, [first]);
    store.append(update(Outcome::Failed)).await.unwrap();
    let failed = store.submit(depending_on(first)).await.unwrap_err().to_string();
    assert_eq!(failed, format!("depend on {first}: it has ended as failed"));
}

async fn a_batch_is_all_or_nothing(store: impl Store) {
    let id = accept(&store, plain()).await.id;
    let before = store.recover().await.unwrap().events.len();
    let broken = Batch {
        events: vec![tick(1)],
        jobs: vec![ended(id, Outcome::Succeeded), ended(JobId::MAX, Outcome::Succeeded)],
        attempts: vec![attempt(pod(id, 0, 1), 1, 2)],
        ..Batch::default()
    };
    assert!(matches!(store.append(broken).await, Err(StoreError::Unknown { .. })));
    assert_eq!(store.recover().await.unwrap().events.len(), before);
    assert_eq!(store.job(id).await.unwrap().unwrap().state.phase, JobPhase::Pending);
    assert!(store.attempt(pod(id, 0, 1)).await.unwrap().is_none());
}

async fn the_log_after_a_snapshot_is_short_and_its_positions_go_on(store: impl Store) {
    let events = |range: std::ops::Range<u64>| Batch::of(range.map(tick).collect());
    let third = store.append(events(1..4)).await.unwrap();
    assert_eq!(third, Seq(3));
    store.save_snapshot(third, "one".to_owned()).await.unwrap();
    let fifth = store.append(events(4..6)).await.unwrap();
    let recovered = store.recover().await.unwrap();
    assert_eq!(recovered.snapshot, Some((Seq(3), "one".to_owned())));
    assert_eq!(recovered.events, [(Seq(4), tick(4)), (Seq(5), tick(5))]);
    store.save_snapshot(fifth, "two".to_owned()).await.unwrap();
    let recovered = store.recover().await.unwrap();
    assert_eq!((recovered.snapshot, recovered.events.len()), (Some((Seq(5), "two".to_owned())), 0));
    assert_eq!(store.append(Batch::default()).await.unwrap(), Seq(5), "nothing new, nothing lost");
    assert_eq!(store.append(events(6..7)).await.unwrap(), Seq(6));
}

async fn the_scheduler_is_rebuilt_as_it_was(store: impl Store) {
    let mut live = Sched::new(Config::default());
    for _ in 0..3 {
        let job = Box::new(accept(&store, plain()).await);
        live.apply(&Event::new(NOW, What::Submitted { job }));
    }
    let first = live.jobs().next().unwrap();
    let cancel = Event::new(NOW + 1, What::CancelRequested { job: first, by: owner("ada") });
    live.apply(&cancel);
    let mut events = vec![cancel];
    events.extend(live.decide(NOW + 2).into_iter().map(|action| Event::decided(NOW + 2, action)));
    let last = store.append(Batch::of(events)).await.unwrap();
    let mut again = Sched::new(Config::default());
    for (_, event) in store.recover().await.unwrap().events {
        again.apply(&event);
    }
    assert_eq!(again.snapshot(), live.snapshot());
    store.save_snapshot(last, serde_json::to_string(&live.snapshot()).unwrap()).await.unwrap();
    let (_, text) = store.recover().await.unwrap().snapshot.unwrap();
    let restored = Sched::restore(Config::default(), serde_json::from_str(&text).unwrap());
    assert_eq!(restored.snapshot(), live.snapshot());
}

async fn an_attempts_history_is_written_once(store: impl Store) {
    let id = accept(&store, plain()).await.id;
    let first = attempt(pod(id, 0, 1), NOW, NOW + 10);
    let second = AttemptRow { outcome: Outcome::Failed, ..first.clone() };
    for row in [&first, &second] {
        store.append(Batch { attempts: vec![row.clone()], ..Batch::default() }).await.unwrap();
    }
    assert_eq!(store.attempt(first.pod).await.unwrap(), Some(first));
}

async fn a_key_answers_its_job_even_when_that_would_be_refused_now(store: impl Store) {
    let body = format!(r#"{{"name": "fit", "image": "busybox", "deadline_s": {}}}"#, NOW / 1000 + 1);
    let once = Submit { idempotency: keyed("k1", "digest").idempotency, ..submit(&body) };
    let first = store.submit(once.clone()).await.unwrap();
    let late = Submit { at_ms: NOW + 1_000, ..once };
    assert_eq!(store.submit(late.clone()).await.unwrap().record, first.record);
    let refused = store.submit(Submit { idempotency: None, ..late }).await;
    assert!(matches!(refused, Err(StoreError::DeadlinePast { .. })), "{refused:?}");
}

async fn a_page_of_attempts_keeps_the_newest_tails(store: impl Store) {
    let id = accept(&store, plain()).await.id;
    // The later an attempt's number, the earlier it ended.
    let attempts = (1..=40).map(|number| AttemptRow {
        log_tail: "x".repeat(64 * 1024),
        ..attempt(pod(id, 0, number), NOW, NOW + 100 - u64::from(number))
    });
    store.append(Batch { attempts: attempts.collect(), ..Batch::default() }).await.unwrap();
    let rows = store.attempts(id, 500, None).await.unwrap().rows;
    let with_tail: Vec<u32> =
        rows.iter().filter(|row| !row.log_tail.is_empty()).map(|row| row.pod.attempt.0).collect();
    assert_eq!((rows.len(), with_tail), (40, (1..=16).collect()));
    let oldest = store.attempt(pod(id, 0, 40)).await.unwrap().unwrap();
    assert_eq!(oldest.log_tail.len(), 64 * 1024, "each is there when it is asked for");
}

async fn attempts_come_in_pages_in_order_of_task_and_attempt(store: impl Store) {
    let id = accept(&store, submit(r#"{"name": "a", "image": "a", "array": {"count": 12}}"#)).await.id;
    let mut pods: Vec<PodKey> = (0..12).flat_map(|task| [pod(id, task, 2), pod(id, task, 1)]).collect();
    let attempts = pods.iter().map(|pod| attempt(*pod, NOW, NOW + 1)).collect();
    store.append(Batch { attempts, ..Batch::default() }).await.unwrap();
    pods.sort();
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store.attempts(id, 5, after).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.pod));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, pods, "task 10 comes after task 9, not after task 1");
}

async fn jobs_come_newest_first_filtered_and_in_pages(store: impl Store) {
    let mut ids = Vec::new();
    for index in 0..9 {
        let team = team(if index % 3 == 0 { "audio" } else { "vision" });
        ids.push(accept(&store, Submit { team, ..plain() }).await.id);
    }
    let batch = Batch { jobs: vec![ended(ids[0], Outcome::Failed)], ..Batch::default() };
    store.append(batch).await.unwrap();
    let list = |query| {
        let store = store.clone();
        async move {
            store.jobs(query).await.unwrap().rows.into_iter().map(|row| row.record.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(
        list(JobQuery { team: Some(team("audio")), ..JobQuery::default() }).await,
        [ids[6], ids[3], ids[0]]
    );
    let failed = JobQuery { outcome: Some(Outcome::Failed), ..JobQuery::default() };
    assert_eq!(list(failed).await, [ids[0]]);
    let pending =
        JobQuery { phase: Some(JobPhase::Pending), owner: Some(owner("ada")), ..JobQuery::default() };
    assert_eq!(list(pending).await.len(), 8);
    let other = JobQuery { project: Some(Project::new("other").unwrap()), ..JobQuery::default() };
    assert!(list(other).await.is_empty());
    let first = store.jobs(JobQuery { limit: 4, ..JobQuery::default() }).await.unwrap();
    // A job that arrives between two pages moves nothing.
    accept(&store, plain()).await;
    let second = store.jobs(JobQuery { limit: 500, after: first.next, ..JobQuery::default() }).await.unwrap();
    let seen: Vec<JobId> = first.rows.iter().chain(&second.rows).map(|row| row.record.id).collect();
    ids.reverse();
    assert_eq!((seen, second.next), (ids, None));
    let foreign = JobQuery { after: Some("1; DROP TABLE jobs".to_owned()), ..JobQuery::default() };
    assert!(matches!(store.jobs(foreign).await, Err(StoreError::Cursor { .. })));
}

async fn usage_is_what_held_room_in_the_window(store: impl Store) {
    let id = accept(&store, plain()).await.id;
    let spans = [(0, 10), (5, 15), (10, 20), (20, 30)];
    let rows = (1..).zip(spans).map(|(number, (from, until))| attempt(pod(id, 0, number), from, until));
    store.append(Batch { attempts: rows.collect(), ..Batch::default() }).await.unwrap();
    let usage = store.usage(10, 20, None).await.unwrap();
    let attempts: Vec<u32> = usage.iter().map(|row| row.pod.attempt.0).collect();
    assert_eq!(attempts, [2, 3], "what ended at the start or began at the end is not in the window");
    let expected = UsageRow {
        pod: pod(id, 0, 2),
        owner: owner("ada"),
        team: team("vision"),
        project: Project::new("default").unwrap(),
        model: None,
        datasets: Vec::new(),
        class: Class::Flexible,
        node: NodeName::new("ml1").unwrap(),
        from_ms: 5,
        until_ms: 15,
        resources: Resources::default(),
        outcome: Outcome::Succeeded,
    };
    assert_eq!(usage[0], expected);
    assert_eq!(store.usage(10, 20, Some(team("vision"))).await.unwrap(), usage);
    assert!(store.usage(10, 20, Some(team("audio"))).await.unwrap().is_empty());
}

async fn a_document_is_stored_once_and_the_newest_generation_answers(store: impl Store) {
    let document = |name: &str, generation: u64, json: &str| DocumentRow {
        kind: "manifest".to_owned(),
        name: name.to_owned(),
        generation,
        at_ms: NOW,
        json: json.to_owned(),
    };
    for (name, generation) in [("apt", 9), ("apt", 10), ("web", 1)] {
        store.put_document(document(name, generation, "{}")).await.unwrap();
    }
    store.put_document(document("apt", 9, "{}")).await.unwrap();
    assert!(matches!(store.put_document(document("apt", 9, "[]")).await, Err(StoreError::Exists { .. })));
    let generation = |found: Option<DocumentRow>| found.map(|document| document.generation);
    assert_eq!(generation(store.document("manifest", "apt", None).await.unwrap()), Some(10));
    assert_eq!(generation(store.document("manifest", "apt", Some(9)).await.unwrap()), Some(9));
    assert_eq!(generation(store.document("other", "apt", None).await.unwrap()), None);
    let newest = store.documents("manifest").await.unwrap();
    let newest: Vec<(&str, u64)> = newest.iter().map(|row| (row.name.as_str(), row.generation)).collect();
    assert_eq!(newest, [("apt", 10), ("web", 1)]);
}

async fn audit_rows_come_in_order_and_in_pages(store: impl Store) {
    let row = |number: u64| AuditRow {
        at_ms: number,
        owner: owner("ada"),
        team: team("vision"),
        action: "token.create".to_owned(),
        subject: number.to_string(),
        result: "ok".to_owned(),
    };
    store.append(Batch { audit: (0..7).map(row).collect(), ..Batch::default() }).await.unwrap();
    let first = store.audit(AuditQuery { limit: 5, after: None }).await.unwrap();
    let second = store.audit(AuditQuery { limit: 5, after: first.next }).await.unwrap();
    let times: Vec<u64> = first.rows.iter().chain(&second.rows).map(|row| row.at_ms).collect();
    assert_eq!((times, second.next), ((0..7).collect(), None));
    let foreign = AuditQuery { limit: 5, after: Some("x".to_owned()) };
    assert!(matches!(store.audit(foreign).await, Err(StoreError::Cursor { .. })));
}

async fn a_token_is_found_by_its_hash_until_it_is_revoked(store: impl Store) {
    let token = TokenRow {
        id: "t1".to_owned(),
        sha256: "ab".repeat(32),
        owner: owner("ada"),
        team: team("vision"),
        role: Role::Submitter,
        note: String::new(),
        created_at_ms: NOW,
        expires_at_ms: Some(NOW + 100),
        revoked_at_ms: None,
    };
    store.create_token(token.clone()).await.unwrap();
    assert!(matches!(store.create_token(token.clone()).await, Err(StoreError::Exists { .. })));
    let found = store.token_by_hash(&token.sha256).await.unwrap().unwrap();
    assert!(found.is_valid(NOW + 99) && !found.is_valid(NOW + 100));
    store.revoke_token("t1", NOW + 5).await.unwrap();
    store.revoke_token("t1", NOW + 6).await.unwrap();
    let revoked = store.tokens().await.unwrap();
    assert_eq!(revoked[0].revoked_at_ms, Some(NOW + 5));
    assert!(!revoked[0].is_valid(NOW + 6));
    assert!(store.token_by_hash("unknown").await.unwrap().is_none());
}

/// One module of tests for each store: a name, and how an empty one is opened in a folder.
macro_rules! stores {
    ($($store:ident: $open:expr => { $($test:ident)* })*) => {
        $(mod $store {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let folder = tempfile::tempdir().unwrap();
                let open: fn(&std::path::Path) -> _ = $open;
                super::$test(open(folder.path())).await;
            })*
        })*
    };
}

stores! {
    sqlite: |folder| {
        let options = rackwright_store::SqliteOptions::at(folder.join("jobs.db"));
        rackwright_store::SqliteStore::open(options).unwrap()
    } => {
        an_accepted_job_is_listed_logged_and_audited
        ids_rise_even_when_the_clock_goes_back
        a_repeated_key_answers_the_first_job_and_changes_nothing
        one_key_in_many_requests_at_once_makes_one_job
        a_refused_request_leaves_nothing_and_spoils_no_neighbour
        a_dependency_must_be_known_and_not_have_ended_badly
        a_batch_is_all_or_nothing
        the_log_after_a_snapshot_is_short_and_its_positions_go_on
        the_scheduler_is_rebuilt_as_it_was
        an_attempts_history_is_written_once
        attempts_come_in_pages_in_order_of_task_and_attempt
        jobs_come_newest_first_filtered_and_in_pages
        usage_is_what_held_room_in_the_window
        a_document_is_stored_once_and_the_newest_generation_answers
        a_key_answers_its_job_even_when_that_would_be_refused_now
        a_page_of_attempts_keeps_the_newest_tails
        audit_rows_come_in_order_and_in_pages
        a_token_is_found_by_its_hash_until_it_is_revoked
    }
}
