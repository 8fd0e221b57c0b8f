package server

func (s *Server) registerDocs() {}
