//! AppService.

use pico_proto::v1;
use pico_proto::v1::app_service_server::AppService;
use pico_proto::v1::open_stream::Kind;
use pico_proto::v1::stream_data::Kind as Data;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, answer, caller, handle, parts};
use crate::hub::{Feed, Handle, Through, cut_off, refused};
use crate::problem::Problem;

/// Pieces that may wait for their reader.
const QUEUE: usize = 64;

type Piece<T> = Result<T, Status>;

#[tonic::async_trait]
impl AppService for Service {
    type ReadLogsStream = ReceiverStream<Piece<v1::LogLine>>;
    type ExecStream = ReceiverStream<Piece<v1::ExecResponse>>;

    async fn create_app(
        &self,
        request: Request<v1::CreateAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.create_app(caller, request).await)
    }

    async fn get_app(&self, request: Request<v1::GetAppRequest>) -> Result<Response<v1::App>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.app(Handle::new(caller, request.app)?).await)
    }

    async fn list_apps(
        &self,
        request: Request<v1::ListAppsRequest>,
    ) -> Result<Response<v1::ListAppsResponse>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.apps(caller, request).await)
    }

    async fn update_app(
        &self,
        request: Request<v1::UpdateAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let handle = handle(request.extensions(), request.get_ref().app.clone())?;
        answer(self.0.update_app(handle, request.into_inner()).await)
    }

    async fn delete_app(
        &self,
        request: Request<v1::DeleteAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let handle = handle(request.extensions(), request.get_ref().app.clone())?;
        answer(self.0.delete_app(handle, request.into_inner()).await)
    }

    async fn start_app(
        &self,
        request: Request<v1::StartAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.start_app(Handle::new(caller, request.app)?).await)
    }

    async fn stop_app(
        &self,
        request: Request<v1::StopAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.stop_app(Handle::new(caller, request.app)?).await)
    }

    async fn restart_app(
        &self,
        request: Request<v1::RestartAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.restart_app(Handle::new(caller, request.app)?).await)
    }

    async fn wake_app(
        &self,
        request: Request<v1::WakeAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.wake_app(Handle::new(caller, request.app)?).await)
    }

    async fn sleep_app(
        &self,
        request: Request<v1::SleepAppRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let (caller, request) = parts(request)?;
        let handle = Handle::new(caller, request.app)?;
        answer(self.0.sleep_app(handle, request.to).await)
    }

    async fn wait_app(&self, request: Request<v1::WaitAppRequest>) -> Result<Response<v1::App>, Status> {
        let (caller, request) = parts(request)?;
        let handle = Handle::new(caller, request.app)?;
        answer(self.0.wait_app(handle, request.condition).await)
    }

    async fn explain_app(
        &self,
        request: Request<v1::ExplainAppRequest>,
    ) -> Result<Response<v1::ExplainAppResponse>, Status> {
        let (caller, request) = parts(request)?;
        answer(self.0.explain_app(Handle::new(caller, request.app)?).await)
    }

    async fn read_logs(
        &self,
        request: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let handle = handle(request.extensions(), request.get_ref().app.clone())?;
        let opened = self.0.open_stream(handle, Kind::Logs(request.into_inner())).await;
        let mut through = opened.map_err(Status::from)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            loop {
                let piece = tokio::select! {
                    piece = through.next() => piece,
                    () = sender.closed() => return,
                };
                let line = match piece {
                    Some(Data::Line(line)) => Ok(line),
                    Some(Data::End(v1::StreamEnd { error: None })) => return,
                    Some(Data::End(v1::StreamEnd { error: Some(error) })) => Err(refused(error).into()),
                    Some(_) => continue,
                    None => Err(cut_off().into()),
                };
                let ends = line.is_err();
                if sender.send(line).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let caller = caller(request.extensions())?;
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|first| first.kind);
        let Some(v1::exec_request::Kind::Start(start)) = first else {
            return Err(Problem::field("start", "the first message says what to run").into());
        };
        let handle = Handle::new(caller, start.app.clone())?;
        let opened = self.0.open_stream(handle, Kind::Exec(start)).await;
        let through = opened.map_err(Status::from)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(run(through, input, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Carries a command's input and output until it ends or its caller goes.
async fn run(
    mut through: Through,
    input: Streaming<v1::ExecRequest>,
    output: mpsc::Sender<Piece<v1::ExecResponse>>,
) {
    let feed = through.feed();
    let carrying = async {
        loop {
            let told = match through.next().await {
                Some(Data::ExecOutput(piece)) => Ok(piece),
                Some(Data::End(v1::StreamEnd { error: None })) => return,
                Some(Data::End(v1::StreamEnd { error: Some(error) })) => Err(refused(error).into()),
                Some(_) => continue,
                None => Err(cut_off().into()),
            };
            let ends = told.is_err();
            if output.send(told).await.is_err() || ends {
                return;
            }
        }
    };
    tokio::select! {
        () = carrying => {}
        () = feed_command(input, feed) => {}
        () = output.closed() => {}
    }
}

/// Carries a command's input, as fast as it takes it. Ends only when the caller or the agent is gone: a command goes on
/// without input.
async fn feed_command(mut input: Streaming<v1::ExecRequest>, feed: Feed) {
    loop {
        feed.ready().await;
        let (piece, last) = match input.message().await {
            Ok(Some(piece)) => (piece, false),
            Ok(None) => {
                let closed = v1::exec_request::Kind::StdinClosed(true);
                (v1::ExecRequest { kind: Some(closed) }, true)
            }
            Err(_) => return,
        };
        if feed.send(Data::ExecInput(piece)).await.is_err() {
            return;
        }
        if last {
            return std::future::pending().await;
        }
    }
}
